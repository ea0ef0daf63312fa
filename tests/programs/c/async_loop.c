// flags: -O2
// An interval timer interrupts a compute loop in chained code: the result is exact, ticks
// arrive while the loop runs, and each frame shows an RIP inside the program.
#include "fault.h"
#include <sys/time.h>

static volatile long ticks, strange, looping;
extern char __executable_start[], etext[];

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    char *rip = (char *)REG(uc, RIP);
    ticks++;
    if (looping && (rip < __executable_start || rip >= etext))
        strange++;
}

int main(void) {
    handle(SIGALRM, tick, SA_RESTART);
    struct itimerval every = {{0, 500}, {0, 500}};
    setitimer(ITIMER_REAL, &every, NULL);
    unsigned long a = 1, b = 0, rounds = 0;
    // At least a fixed amount, and until signals have come; the state is a pure function.
    looping = 1;
    while (rounds < 10 || ticks < 20) {
        a = 1, b = 0;
        for (long i = 0; i < 1000000; i++) {
            a = a * 6364136223846793005ul + 1442695040888963407ul;
            b ^= a >> 33;
            b = b << 7 | b >> 57;
        }
        if (rounds++ > 100000)
            return 2;
    }
    looping = 0;
    struct itimerval off = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &off, NULL);
    printf("a %lx b %lx strange %d\n", a, b, strange > 0);
    return 0;
}
