// flags: -O1 -z execstack -Wno-trampolines
// Code on the stack: GCC's trampolines for nested functions, made and called anew at each
// call, with signal frames written beside them.
#include "fault.h"
#include <sys/time.h>

static volatile long ticks;

static void tick(int signo) {
    (void)signo;
    ticks++;
}

static __attribute__((noinline)) long apply(long (*f)(long), long x) { return f(x); }

static __attribute__((noinline)) long closure(long base, int depth) {
    long calls = 0;
    __attribute__((noinline)) long add(long x) {
        calls++;
        return x + base;
    }
    long result = apply(add, depth) + apply(add, 1);
    if (depth > 0)
        result += closure(base + 1, depth - 1);
    return result + calls;
}

int main(void) {
    signal(SIGALRM, tick);
    struct itimerval every = {{0, 500}, {0, 500}};
    setitimer(ITIMER_REAL, &every, NULL);
    long sum = 0;
    for (int i = 0; i < 3000 || ticks < 10; i++) {
        long one = closure(i, 5);
        CHECK(one == 12l * i + 30 + 15 + 6 + 12);
        if (i < 3000)
            sum += one;
    }
    printf("%ld\n", sum);
    return 0;
}
