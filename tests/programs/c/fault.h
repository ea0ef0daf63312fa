// Shared by the fault programs: raw access to a frame's registers, and a handler that
// reports and jumps out. Code addresses are printed relative to `origin`, data addresses
// relative to the ones that the caller names, so that the output is the same everywhere.
#ifndef FAULT_H
#define FAULT_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define REG(u, name) (((ucontext_t *)(u))->uc_mcontext.gregs[REG_##name])

static inline void handle(int signo, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    if (sigaction(signo, &action, NULL) != 0) {
        perror("sigaction");
        exit(99);
    }
}

static inline void handle_all_faults(void (*handler)(int, siginfo_t *, void *), int flags) {
    int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (unsigned i = 0; i < 5; i++)
        handle(signals[i], handler, flags);
}

static inline char *pages(int count, int protection) {
    char *at = mmap(NULL, count * 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(99);
    }
    return at;
}

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            printf("%s:%d: not so: %s\n", __FILE__ + (strrchr(__FILE__, '/') ? strrchr(__FILE__, '/') - __FILE__ + 1 : 0), __LINE__, #condition); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)
#endif
