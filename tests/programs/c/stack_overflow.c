// flags: -O0 -Wno-infinite-recursion
// Deep recursion until the stack ends, caught on the alternate stack, left by siglongjmp,
// twice. The fault is just below rsp.
#include "fault.h"

static sigjmp_buf out;
static volatile long depth;

static void caught(int signo, siginfo_t *info, void *uc) {
    long below = (long)REG(uc, RSP) - (long)info->si_addr;
    printf("signal %d code %d, deep %d, near rsp %d, write %d\n", signo, info->si_code,
           depth > 10000, below >= -8192 && below <= 8192, (int)(REG(uc, ERR) >> 1 & 1));
    siglongjmp(out, 1);
}

static long recurse(long n) {
    volatile char space[256];
    space[n % 256] = (char)n;
    depth++;
    return recurse(n + 1) + space[n % 256];
}

int main(void) {
    stack_t stack = {.ss_sp = pages(16, PROT_READ | PROT_WRITE), .ss_size = 65536};
    sigaltstack(&stack, NULL);
    handle(SIGSEGV, caught, SA_ONSTACK);
    handle(SIGBUS, caught, SA_ONSTACK);
    for (int round = 0; round < 2; round++) {
        depth = 0;
        if (!sigsetjmp(out, 1))
            return (int)recurse(1);
    }
    printf("done\n");
    return 0;
}
