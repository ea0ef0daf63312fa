// flags: -O1
// sigaltstack: where handlers run, what is reported, what is refused, AUTODISARM.
#include "fault.h"
#include <errno.h>
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

static char stack[65536], other[65536];

static void show(const char *where) {
    stack_t now;
    sigaltstack(NULL, &now);
    printf("%s: %s, flags %x, size %zu\n", where,
           now.ss_sp == stack ? "stack" : now.ss_sp == other ? "other" : "none",
           (unsigned)now.ss_flags, now.ss_size);
}

static int set(void *at, size_t size, unsigned flags) {
    stack_t new = {.ss_sp = at, .ss_size = size, .ss_flags = flags};
    return sigaltstack(&new, NULL) ? errno : 0;
}

static int inside(char *base) {
    char here;
    return &here > base && &here < base + 65536;
}

static void handler(int signo, siginfo_t *info, void *uc) {
    (void)info;
    stack_t *saved = &((ucontext_t *)uc)->uc_stack;
    printf(" handler of %d: on stack %d, on other %d, frame says size %zu flags %x\n", signo,
           inside(stack), inside(other), saved->ss_size, (unsigned)saved->ss_flags);
    show(" in handler");
    printf(" change: %d\n", set(other, sizeof other, 0));
    if (signo == SIGUSR1)
        raise(SIGUSR2);
}

int main(void) {
    show("start");
    printf("too small %d, bad flags %d\n", set(stack, 1024, 0), set(stack, sizeof stack, 4));
    handle(SIGUSR1, handler, SA_ONSTACK);
    handle(SIGUSR2, handler, SA_ONSTACK);
    handle(SIGHUP, handler, 0);
    raise(SIGUSR1);
    set(NULL, 0, SS_DISABLE);
    show("disabled");
    set(stack, sizeof stack, 0);
    show("set");
    raise(SIGUSR1);
    show("after");
    set(stack, sizeof stack, SS_AUTODISARM);
    raise(SIGUSR2);
    show("after autodisarm");
    set(stack, sizeof stack, SS_ONSTACK);
    raise(SIGHUP);
    show("after one on the main stack");
    printf("end %d\n", inside(stack));
    return 0;
}
