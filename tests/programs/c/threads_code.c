// flags: -O1 -pthread
// Code that changes while other threads run it: rewritten in place (mprotect), rewritten
// through a writable view, unmapped, protected or moved under a running loop, mapped anew.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RUNNERS = 2, CHANGES = 60 };

typedef int (*function)(void);

// mov $value, %eax; ret
static void put(unsigned char *at, int value) {
    unsigned char code[8] = {0xb8, 0, 0, 0, 0, 0xc3, 0x90, 0x90};
    memcpy(code + 1, &value, 4);
    uint64_t word;
    memcpy(&word, code, 8);
    __atomic_store_n((uint64_t *)at, word, __ATOMIC_SEQ_CST);
}

static unsigned char *code;
static volatile int published, stop;
static long stale, backwards;
static pthread_barrier_t running;

static void *runner(void *argument) {
    (void)argument;
    int last = ((function)code)();
    pthread_barrier_wait(&running);
    while (!stop) {
        int known = __atomic_load_n(&published, __ATOMIC_SEQ_CST);
        int now = ((function)code)();
        if (now < known)
            __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
        if (now < last)
            __atomic_fetch_add(&backwards, 1, __ATOMIC_RELAXED);
        last = now;
    }
    return NULL;
}

static void change_while_running(const char *what, void (*change)(int)) {
    pthread_t threads[RUNNERS];
    stop = published = 0;
    stale = backwards = 0;
    pthread_barrier_init(&running, NULL, RUNNERS + 1);
    change(0);
    for (int i = 0; i < RUNNERS; i++)
        pthread_create(&threads[i], NULL, runner, NULL);
    pthread_barrier_wait(&running);
    for (int i = 1; i <= CHANGES; i++) {
        change(i);
        // What a call that starts from here on returns.
        __atomic_store_n(&published, i, __ATOMIC_SEQ_CST);
        if (i % 10 == 0)
            usleep(1000);
    }
    stop = 1;
    for (int i = 0; i < RUNNERS; i++)
        pthread_join(threads[i], NULL);
    printf("%s: stale %ld, backwards %ld\n", what, stale, backwards);
}

static void rewrite(int value) { put(code, value); }
static unsigned char *view;
static void rewrite_view(int value) { put(view, value); }

static void map_anew(int value) {
    static int file = -1;
    if (file < 0)
        file = memfd_create("code", 0);
    unsigned char page[4096] = {0};
    put(page, value);
    if (pwrite(file, page, sizeof page, (off_t)value * 4096) != sizeof page)
        _exit(9);
    mmap(code, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, (off_t)value * 4096);
}

// A loop that ends when its page goes.
static __thread sigjmp_buf gone;
static void on_fault(int signo, siginfo_t *info, void *context) {
    (void)signo, (void)context;
    siglongjmp(gone, (unsigned char *)info->si_addr >= code && (unsigned char *)info->si_addr < code + 4096 ? 1 : 2);
}
static volatile int looping;
static void *looper(void *argument) {
    (void)argument;
    int result = sigsetjmp(gone, 1);
    if (result == 0) {
        __atomic_fetch_add(&looping, 1, __ATOMIC_SEQ_CST);
        ((function)code)();
    }
    return (void *)(long)result;
}
static void pull_away(const char *what, int how) {
    pthread_t threads[RUNNERS];
    looping = 0;
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(code, "\x48\xff\xc0\xeb\xfb", 5); // inc %rax; jmp back
    mprotect(code, 4096, PROT_READ | PROT_EXEC);
    for (int i = 0; i < RUNNERS; i++)
        pthread_create(&threads[i], NULL, looper, NULL);
    while (looping < RUNNERS)
        usleep(100);
    usleep(20000);
    if (how == 0) {
        munmap(code, 4096);
    } else if (how == 1) {
        mprotect(code, 4096, PROT_READ);
    } else {
        void *elsewhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mremap(code, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere) != elsewhere)
            _exit(8);
    }
    printf("%s:", what);
    for (int i = 0; i < RUNNERS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        printf(" %ld", (long)result);
    }
    printf("\n");
}

// Counters beside running code: each write hits a page that is watched again and again.
enum { COUNTS = 3000 };
static void *counts(void *argument) {
    volatile long *counter = (volatile long *)(code + 2048) + (long)argument * 8;
    pthread_barrier_wait(&running);
    for (int i = 0; i < COUNTS; i++) {
        (*counter)++;
        if (argument)
            __atomic_fetch_add((long *)(code + 3072), 1, __ATOMIC_RELAXED);
    }
    return NULL;
}
static void *calls(void *argument) {
    pthread_barrier_wait(&running);
    while (!stop)
        if (((function)code)() != 77)
            __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
    return argument;
}
static void data_beside_code(void) {
    pthread_t writers[3], caller;
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    put(code, 77);
    stop = 0;
    stale = 0;
    pthread_barrier_init(&running, NULL, 4);
    for (long i = 0; i < 3; i++)
        pthread_create(&writers[i], NULL, counts, (void *)i);
    pthread_create(&caller, NULL, calls, NULL);
    for (int i = 0; i < 3; i++)
        pthread_join(writers[i], NULL);
    stop = 1;
    pthread_join(caller, NULL);
    volatile long *counters = (volatile long *)(code + 2048);
    printf("data beside code: %ld %ld %ld, together %ld, stale %ld\n", counters[0], counters[8], counters[16],
           *(long *)(code + 3072), stale);
    munmap(code, 4096);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);

    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    change_while_running("in place", rewrite);
    munmap(code, 4096);

    int file = memfd_create("views", 0);
    if (ftruncate(file, 4096) != 0)
        return 1;
    view = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    change_while_running("through a view", rewrite_view);
    munmap(code, 4096);
    munmap(view, 4096);

    code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    change_while_running("mapped anew", map_anew);
    munmap(code, 4096);

    data_beside_code();
    pull_away("unmapped", 0);
    pull_away("no longer executable", 1);
    pull_away("moved", 2);
    return 0;
}
