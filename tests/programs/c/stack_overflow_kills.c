// flags: -O0 -Wno-infinite-recursion
// The same without an alternate stack: no frame can be written, so SIGSEGV kills in spite
// of the handler.
#include "fault.h"

static void caught(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    _exit(3);
}

static long recurse(long n) {
    volatile char space[512];
    space[n % 512] = (char)n;
    return recurse(n + 1) + space[n % 512];
}

int main(void) {
    handle(SIGSEGV, caught, 0);
    printf("going down\n");
    fflush(stdout);
    return (int)recurse(1);
}
