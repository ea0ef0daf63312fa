// flags: -O1
// Faults inside handlers: other signals nest, the mask grows and shrinks, SA_NODEFER lets
// the same signal nest, and each handler returns to exactly where it was.
#include "fault.h"

static int depth;
static volatile int *volatile null;

static unsigned long blocked(void) {
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    unsigned long bits;
    memcpy(&bits, &set, 8);
    return bits;
}

static void on_segv(int signo, siginfo_t *info, void *uc) {
    printf("%*ssegv code %d at depth %d, blocked %lx\n", depth, "", info->si_code, depth, blocked());
    depth++;
    if (depth < 4)
        *null = 1;
    else
        asm volatile("ud2");
    depth--;
    printf("%*ssegv done\n", depth, "");
    REG(uc, RIP) += 6 + (((unsigned char *)REG(uc, RIP))[0] == 0x41); // movl $1,(reg)
    (void)signo;
}

static void on_ill(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    printf("%*sill, blocked %lx\n", depth, "", blocked());
    depth++;
    asm volatile("mov $1,%%eax; cltd; xor %%ecx,%%ecx; idiv %%ecx" ::: "rax", "rcx", "rdx");
    depth--;
    REG(uc, RIP) += 2;
}

static void on_fpe(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    printf("%*sfpe, blocked %lx\n", depth, "", blocked());
    asm volatile("int3");
    REG(uc, RIP) += 2;
}

static void on_trap(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    printf("%*strap, blocked %lx\n", depth, "", blocked());
}

int main(void) {
    handle(SIGSEGV, on_segv, SA_NODEFER);
    handle(SIGILL, on_ill, 0);
    handle(SIGFPE, on_fpe, 0);
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaddset(&action.sa_mask, SIGUSR1);
    sigaddset(&action.sa_mask, SIGSEGV);
    sigaction(SIGTRAP, &action, NULL);
    asm volatile("xor %%eax,%%eax; movl $1,(%%rax)" ::: "rax", "memory");
    printf("back at depth %d, blocked %lx\n", depth, blocked());
    return depth;
}
