// flags: -O2
// heavy
// Leaf code keeps values below rsp (the red zone) while signals come: handlers must not
// touch it, whatever they do with their own stack.
#include "fault.h"
#include <sys/time.h>

static volatile long ticks;

static void tick(int signo) {
    (void)signo;
    volatile char junk[4096];
    for (unsigned i = 0; i < sizeof junk; i++)
        junk[i] = 0x5a;
    ticks++;
}

static __attribute__((noinline)) long leaf(long seed) {
    long bad;
    asm volatile("xor %0,%0\n"
                 "mov %1,%%rdx\n"
                 ".set off,-8\n"
                 ".rept 16\n"
                 "mov %%rdx,off(%%rsp); add $3,%%rdx\n"
                 ".set off,off-8\n"
                 ".endr\n"
                 "mov $200,%%ecx\n"
                 "1: dec %%ecx; jnz 1b\n"
                 "mov %1,%%rdx\n"
                 ".set off,-8\n"
                 ".rept 16\n"
                 "mov off(%%rsp),%%rax; sub %%rdx,%%rax; or %%rax,%0; add $3,%%rdx\n"
                 ".set off,off-8\n"
                 ".endr\n"
                 : "=&r"(bad)
                 : "r"(seed)
                 : "rax", "rcx", "rdx", "memory", "cc");
    return bad;
}

int main(void) {
    signal(SIGALRM, tick);
    struct itimerval every = {{0, 200}, {0, 200}};
    setitimer(ITIMER_REAL, &every, NULL);
    for (long i = 0; i < 1000000 || ticks < 50; i++)
        if (leaf(i)) {
            printf("round %ld: the red zone was changed\n", i);
            return 1;
        }
    printf("untouched\n");
    return 0;
}
