// flags: -O1
// Long string instructions interrupted by a timer: the frame shows how far they came, the
// handler returns, and the whole is done exactly once.
#include "fault.h"
#include <sys/time.h>

static volatile long ticks, wrong;
extern char the_rep[], after_rep[];
static unsigned char *from, *to;
enum { SIZE = 1 << 20 };

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    ticks++;
    if ((char *)REG(uc, RIP) != the_rep)
        return;
    unsigned long done = SIZE - REG(uc, RCX);
    // Before the first iteration the registers may still be at their start.
    if (REG(uc, RSI) - (greg_t)from != (greg_t)done || REG(uc, RDI) - (greg_t)to != (greg_t)done)
        wrong++;
    else if (done > 0 && to[done - 1] != from[done - 1])
        wrong++;
}

int main(void) {
    from = malloc(SIZE), to = malloc(SIZE);
    for (int i = 0; i < SIZE; i++)
        from[i] = (unsigned char)(i * 7 + i / 256);
    handle(SIGALRM, tick, 0);
    struct itimerval every = {{0, 200}, {0, 200}};
    setitimer(ITIMER_REAL, &every, NULL);
    for (int round = 0; round < 300 || ticks < 20; round++) {
        memset(to, 0, SIZE);
        void *d = to, *s = from;
        long c = SIZE;
        asm volatile("the_rep: rep movsb\nafter_rep:" : "+D"(d), "+S"(s), "+c"(c) : : "memory");
        if (memcmp(from, to, SIZE) || c != 0)
            return 1;
    }
    printf("wrong %ld\n", wrong);
    return wrong != 0;
}
