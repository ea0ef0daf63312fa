// flags: -O1
// Handlers that leave by siglongjmp, many times: the mask comes back, no state piles up.
#include "fault.h"

static sigjmp_buf out;
static long count;

static void leave(int signo, siginfo_t *info, void *uc) {
    (void)info, (void)uc;
    count++;
    siglongjmp(out, signo);
}

int main(void) {
    long by_signal[32] = {0};
    char *page = pages(1, PROT_READ);
    handle_all_faults(leave, 0);
    for (volatile int i = 0; i < 20000; i++) {
        int signo = sigsetjmp(out, 1);
        if (signo) {
            by_signal[signo]++;
            continue;
        }
        switch (i % 4) {
        case 0: page[i % 4096] = 1; break;
        case 1: asm volatile("ud2"); break;
        case 2: asm volatile("int3"); break;
        case 3: asm volatile("xor %%ecx,%%ecx; div %%ecx" ::: "rax", "rcx", "rdx"); break;
        }
        return 2;
    }
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    printf("%ld faults: segv %ld ill %ld trap %ld fpe %ld, segv blocked %d\n", count,
           by_signal[SIGSEGV], by_signal[SIGILL], by_signal[SIGTRAP], by_signal[SIGFPE],
           sigismember(&set, SIGSEGV));
    return 0;
}
