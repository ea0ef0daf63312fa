// flags: -O1
// Unmasked floating-point exceptions: SSE ones at the instruction, x87 ones at the next
// waiting instruction; the handler masks them in the frame and the program goes on.
#include "fault.h"

static void mask_it(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    struct _libc_fpstate *fp = ((ucontext_t *)uc)->uc_mcontext.fpregs;
    printf("  code %d trap %lld at rip %d status %x mxcsr %x\n", info->si_code, REG(uc, TRAPNO),
           (greg_t)info->si_addr == REG(uc, RIP), fp->swd & 0x3f, fp->mxcsr);
    fp->mxcsr |= 0x1f80;
    fp->cwd |= 0x3f;
    fp->swd &= ~0x80ff;
}

static void with_mxcsr(const char *name, unsigned mxcsr, double a, double b, int divide) {
    unsigned initial = 0x1f80;
    double result;
    printf("%s\n", name);
    if (divide)
        asm volatile("ldmxcsr %1; divsd %3,%2; ldmxcsr %4; movsd %2,%0"
                     : "=m"(result) : "m"(mxcsr), "x"(a), "x"(b), "m"(initial));
    else
        asm volatile("ldmxcsr %1; mulsd %3,%2; ldmxcsr %4; movsd %2,%0"
                     : "=m"(result) : "m"(mxcsr), "x"(a), "x"(b), "m"(initial));
    printf("  result %g\n", result);
}

static void with_x87(const char *name, unsigned short control, double a, double b) {
    double result;
    printf("%s\n", name);
    asm volatile("fninit; fldl %2; fldl %3; fldcw %1; fdivrp; nop; fwait; fstpl %0; fninit"
                 : "=m"(result) : "m"(control), "m"(b), "m"(a));
    printf("  result %g\n", result);
}

int main(void) {
    handle(SIGFPE, mask_it, 0);
    with_mxcsr("divide by zero", 0x1d80, 1, 0, 1);
    with_mxcsr("invalid", 0x1f00, 0, 0, 1);
    with_mxcsr("overflow", 0x1b80, 1e308, 1e308, 0);
    with_mxcsr("underflow", 0x1780, 1e-308, 1e-308, 0);
    with_mxcsr("precision", 0x0f80, 1, 3, 1);
    with_mxcsr("denormal", 0x1e80, 4e-320, 1, 0);
    with_mxcsr("masked", 0x1f80, 1, 0, 1);
    with_x87("x87 divide by zero", 0x37b, 1, 0);
    with_x87("x87 invalid", 0x37e, 0, 0);
    with_x87("x87 precision", 0x35f, 1, 3);
    with_x87("x87 masked", 0x37f, 1, 0);
    return 0;
}
