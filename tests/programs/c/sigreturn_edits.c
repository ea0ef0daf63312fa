// flags: -O1 -mno-red-zone
// What rt_sigreturn takes from an edited frame (mask, stack, flags) and what it refuses
// with SIGSEGV (state that XRSTOR refuses, an RIP or a selector that IRET refuses).
#include "fault.h"

static sigjmp_buf out;
static int mode;
static char stack[65536];

static void edit(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    ucontext_t *context = uc;
    unsigned char *area = (unsigned char *)context->uc_mcontext.fpregs;
    REG(uc, RIP) += 2;
    switch (mode) {
    case 0: sigaddset(&context->uc_sigmask, SIGHUP); sigaddset(&context->uc_sigmask, SIGKILL); break;
    case 1: context->uc_stack = (stack_t){.ss_sp = stack, .ss_size = sizeof stack}; break;
    case 2: REG(uc, EFL) = ~0ul; REG(uc, EFL) &= ~0x40500ul; break; // all but AC, TF, DF
    case 3: *(unsigned *)(area + 24) = 0xffffffff; break;           // reserved MXCSR bits
    case 4: area[512 + 7] = 0x40; break;                            // unknown component
    case 5: area[512 + 20] = 1; break;                              // reserved header byte
    case 6: context->uc_mcontext.fpregs = (void *)(area + 8); break; // misaligned
    case 7: context->uc_mcontext.fpregs = (void *)8; break;         // unmapped
    case 8: REG(uc, RIP) = 0x4000000000000000; break;
    case 9: REG(uc, CSGSFS) = (REG(uc, CSGSFS) & ~0xffffl) | 0x7b; break;
    }
}

static void refused(int signo, siginfo_t *info, void *uc) {
    printf("signal %d code %d addr %p trap %d err %x", signo, info->si_code, info->si_addr,
           mode >= 8 ? (int)REG(uc, TRAPNO) : 0, mode >= 8 ? (int)REG(uc, ERR) : 0);
    printf(" rip is the frame's %d, rax %d\n", (unsigned long)REG(uc, RIP) == 0x4000000000000000 || mode != 8,
           (int)REG(uc, RAX));
    siglongjmp(out, 1);
}

int main(void) {
    handle(SIGILL, edit, 0);
    handle(SIGSEGV, refused, 0);
    for (mode = 0; mode < 10; mode++) {
        unsigned long flags = 0;
        printf("%d: ", mode);
        fflush(stdout);
        if (!sigsetjmp(out, 1)) {
            asm volatile("mov $5,%%eax; ud2; pushf; pop %0; cld" : "=r"(flags)::"rax", "memory", "cc");
            sigset_t set;
            stack_t now;
            sigprocmask(SIG_BLOCK, NULL, &set);
            sigaltstack(NULL, &now);
            printf("hup %d kill %d ill %d stack %d flags %lx\n", sigismember(&set, SIGHUP),
                   sigismember(&set, SIGKILL), sigismember(&set, SIGILL), now.ss_sp == stack,
                   mode == 2 ? flags & 0x8d5 : 0);
            asm volatile("fninit");
        }
    }
    return 0;
}
