// flags: -O1
// x87, MXCSR, SSE, AVX and (where there is one) AVX-512 state survives handlers that
// overwrite all of it, and handlers start with the initial state.
#include "fault.h"
#include <cpuid.h>

static unsigned entry_mxcsr;
static unsigned short entry_control;
static int avx512, handled;
static double entry_xmm;

static void clobber(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    asm volatile("stmxcsr %0; fnstcw %1; movsd %%xmm3,%2" : "=m"(entry_mxcsr), "=m"(entry_control), "=m"(entry_xmm));
    if (avx512)
        asm volatile("vpternlogd $255,%%zmm0,%%zmm0,%%zmm0; vmovdqa64 %%zmm0,%%zmm3\n"
                     "vmovdqa64 %%zmm0,%%zmm31; kxnorq %%k0,%%k0,%%k3" ::: "memory");
    else
        asm volatile("vpcmpeqd %%xmm0,%%xmm0,%%xmm0; vmovdqa %%ymm0,%%ymm3" ::: "memory");
    asm volatile("fninit; fldl2e; fldlg2; fldz");
    unsigned mxcsr = 0x9fc0;
    asm volatile("ldmxcsr %0" ::"m"(mxcsr));
    if (signo == SIGILL)
        REG(uc, RIP) += 2;
    handled++;
}

// Loads patterns, runs `code`, stores everything again.
#define ROUND(name, code)                                                                    \
    do {                                                                                     \
        if (avx512)                                                                          \
            asm volatile("vmovdqu64 (%2),%%zmm3; vmovdqu64 64(%2),%%zmm31; kmovq (%2),%%k3"  \
                         "\nfninit; fldpi; fld1; ldmxcsr %1\n" code                          \
                         "\nvmovdqu64 %%zmm3,(%0); vmovdqu64 %%zmm31,64(%0); kmovq %%k3,%%rax" \
                         "\nmov %%rax,128(%0); fstpl 136(%0); fstpl 144(%0); stmxcsr 152(%0)" \
                         ::"r"(to), "m"(control), "r"(from) : "rax", "rcx", "r11", "memory", "xmm3"); \
        else                                                                                 \
            asm volatile("vmovdqu (%2),%%ymm3\nfninit; fldpi; fld1; ldmxcsr %1\n" code       \
                         "\nvmovdqu %%ymm3,(%0); fstpl 136(%0); fstpl 144(%0); stmxcsr 152(%0)" \
                         ::"r"(to), "m"(control), "r"(from) : "rax", "rcx", "r11", "memory", "xmm3"); \
        int width = avx512 ? 128 : 32;                                                       \
        double st0, st1;                                                                     \
        memcpy(&st0, to + 136, 8), memcpy(&st1, to + 144, 8);                                \
        unsigned mxcsr;                                                                      \
        memcpy(&mxcsr, to + 152, 4);                                                         \
        printf("%s: vectors %d masks %d st %.3f %.3f mxcsr %x, entry %x %x %g\n", name,      \
               memcmp(from, to, width) == 0, !avx512 || memcmp(from, to + 128, 8) == 0, st0, \
               st1, mxcsr, entry_mxcsr, entry_control, entry_xmm);                           \
        asm volatile("ldmxcsr %0; fninit" ::"m"(initial));                                   \
    } while (0)

int main(void) {
    static unsigned char from[128], to[160];
    unsigned control = 0x5f80, initial = 0x1f80, a, b, c, d;
    for (int i = 0; i < 128; i++)
        from[i] = (unsigned char)(i * 5 + 1);
    __cpuid(1, a, b, c, d);
    if (!(c & bit_AVX)) {
        printf("skipped: no AVX here\n");
        return 0;
    }
    avx512 = __builtin_cpu_supports("avx512bw");
    handle(SIGILL, clobber, 0);
    handle(SIGTRAP, clobber, 0);
    handle(SIGUSR1, clobber, 0);
    long pid = getpid();
    for (int i = 0; i < 3; i++) {
        ROUND("fault", "ud2");
        ROUND("trap", "int3");
    }
    asm volatile("mov %0,%%r12" ::"r"(pid) : "r12");
    ROUND("kill", "mov $39,%%eax; syscall; push %%rdi; push %%rsi; mov %%eax,%%edi;"
                  "mov $10,%%esi; mov $62,%%eax; syscall; pop %%rsi; pop %%rdi");
    printf("%d handled\n", handled);
    return 0;
}
