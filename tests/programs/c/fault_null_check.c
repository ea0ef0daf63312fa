// flags: -O2
// A hot loop whose rare null pointer is handled as a JVM does: the handler moves RIP to a
// recovery path. Also proves that promotion of the loop changes nothing.
#include "fault.h"

extern char check_here[], recover_here[];
static long recovered;

static void on_null(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    CHECK((char *)REG(uc, RIP) == check_here);
    CHECK(info->si_addr == (void *)8 && info->si_code == SEGV_MAPERR);
    recovered++;
    REG(uc, RIP) = (greg_t)recover_here;
}

static __attribute__((noinline, noclone)) long load(long *object) {
    long value;
    asm volatile("check_here: mov 8(%1),%0\n"
                 "jmp 1f\n"
                 "recover_here: mov $-1,%0\n"
                 "1:"
                 : "=r"(value)
                 : "r"(object)
                 : "memory");
    return value;
}

int main(void) {
    long object[2] = {0, 3}, sum = 0;
    handle(SIGSEGV, on_null, 0);
    for (long i = 0; i < 2000000; i++)
        sum += load(i % 1000 == 999 ? NULL : object);
    printf("sum %ld, recovered %ld\n", sum, recovered);
    return sum == 2000000L / 1000 * (999 * 3 - 1) ? 0 : 1;
}
