// flags: -O1 -pthread
// Ten thousand threads in waves, each with thread-local variables and a result.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { WAVES = 100, WIDTH = 100 };

static __thread uint64_t seed = 17;
static __thread char pad[3000];
static uint64_t total;

static void *work(void *argument) {
    uint64_t id = (uintptr_t)argument;
    uint64_t start = seed;
    seed = id;
    for (int i = 0; i < 50; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        pad[seed % sizeof pad] ^= (char)seed;
    }
    __atomic_fetch_add(&total, seed, __ATOMIC_RELAXED);
    return (void *)(uintptr_t)(start + id);
}

int main(void) {
    pthread_t threads[WIDTH];
    uint64_t results = 0;
    for (int wave = 0; wave < WAVES; wave++) {
        for (int i = 0; i < WIDTH; i++) {
            uintptr_t id = (uintptr_t)wave * WIDTH + i;
            if (pthread_create(&threads[i], NULL, work, (void *)id) != 0) {
                perror("pthread_create");
                return 1;
            }
        }
        for (int i = 0; i < WIDTH; i++) {
            void *result;
            pthread_join(threads[i], &result);
            results += (uintptr_t)result;
        }
    }
    printf("%lu %lu %lu\n", (unsigned long)total, (unsigned long)results, (unsigned long)seed);
    return 0;
}
