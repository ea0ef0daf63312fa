// flags: -O1 -mno-red-zone -pthread
// The storm over registers in several threads at once, each hit by its own timers, by the
// others (pthread_kill) and by signals to the process, while another thread starts and ends
// threads and changes code that all could run.
#define STORM_THREADS
#include "storm_registers.c"
#include <pthread.h>

enum { THREADS = 4 };
static pthread_t threads[THREADS];
static atomic_int running, results, at_process, sent_to_process;
static long each;

static void at_the_process(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    at_process++;
}

static void *rain(void *unused) {
    (void)unused;
    random_state ^= (unsigned long)gettid() << 32;
    results += storm(each);
    running--;
    // Its handler may still be asked for by the others.
    while (running)
        usleep(100);
    return NULL;
}

static void *nothing(void *value) { return value; }

int main(int argc, char **argv) {
    handle(SIGALRM, tick, 0);
    handle(SIGRTMIN + 1, tick, 0);
    handle(SIGRTMIN + 2, at_the_process, SA_RESTART);
    each = storm_size(argc, argv, THREADS);
    running = THREADS;
    over = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, rain, NULL) == 0);
    // mov $i,%eax; ret
    unsigned char *code = (unsigned char *)pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy(code, "\xb8\0\0\0\0\xc3", 6);
    for (int i = 0; running; i++) {
        int to = i % THREADS;
        pthread_kill(threads[to], i % 2 ? SIGALRM : SIGRTMIN + 1);
        if (i % 3 == 0 && kill(getpid(), SIGRTMIN + 2) == 0)
            sent_to_process++;
        pthread_t other;
        void *value;
        CHECK(pthread_create(&other, NULL, nothing, code) == 0);
        CHECK(pthread_join(other, &value) == 0 && value == code);
        memcpy(code + 1, &i, 4);
        CHECK(((int (*)(void))code)() == i);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("as they should be %d, all came %d\n", results, at_process == sent_to_process);
    return 0;
}
