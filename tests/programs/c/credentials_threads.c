// flags: -O1 -pthread
// The C library changes the credentials of all threads together, by a signal of its own.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int stage, waiting;
static int seen[3][2];

static void *worker(void *which) {
    int index = (int)(long)which;
    volatile unsigned long work = 0;
    waiting++;
    for (int round = 0; round < 2; round++) {
        // One in a system call, the others in loops.
        while (stage <= round)
            if (index == 0)
                usleep(100);
            else
                work++;
        seen[index][round] = (int)syscall(SYS_geteuid);
        waiting++;
    }
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    for (long i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, worker, (void *)i);
    while (waiting < 3)
        usleep(100);
    int changed = setresuid(-1, 65534, -1);
    printf("%d %s\n", changed, changed ? strerror(errno) : "changed");
    stage = 1;
    while (waiting < 6)
        usleep(100);
    printf("%d\n", setresuid(-1, getuid(), -1));
    stage = 2;
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        printf("thread %d: %d %d\n", i, seen[i][0], seen[i][1]);
    }
    return 0;
}
