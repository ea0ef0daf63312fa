// flags: -O1
// A handler edits the floating-point area of its frame (xmm, upper ymm, x87, MXCSR), drops
// components from it, or leaves it out; the program goes on with what it said.
#include "fault.h"
#include <cpuid.h>

static int mode;
static unsigned avx_offset;

static void edit(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    ucontext_t *context = uc;
    unsigned char *area = (unsigned char *)context->uc_mcontext.fpregs;
    unsigned *software = (unsigned *)(area + 464);
    CHECK(software[0] == 0x46505853 && ((unsigned long)area & 63) == 0);
    CHECK(*(unsigned *)(area + software[4]) == 0x46505845 && software[1] == software[4] + 4);
    unsigned long *present = (unsigned long *)(area + 512);
    CHECK((*present & 3) == 3);
    REG(uc, RIP) += 2;
    switch (mode) {
    case 0:
        memset(area + 160 + 16, 0x41, 16);            // xmm1
        memset(area + avx_offset + 16, 0x42, 16);     // upper ymm1
        *present |= 4;
        *(unsigned *)(area + 24) = 0x3f80;            // round down
        break;
    case 1: *present &= ~4ul; break;                  // AVX becomes initial
    case 2: software[0] = 0; break;                   // legacy only: the upper halves go
    case 3: context->uc_mcontext.fpregs = NULL; break; // everything initial
    case 4: memset(area + 32, 0, 128); break;         // x87 values become 0
    }
}

int main(void) {
    unsigned a, b, c, d;
    __cpuid_count(0xd, 2, a, b, c, d);
    avx_offset = b;
    handle(SIGILL, edit, 0);
    if (!__builtin_cpu_supports("avx")) {
        printf("skipped: no AVX here\n");
        return 0;
    }
    for (mode = 0; mode < 5; mode++) {
        static unsigned char from[32], to[32];
        double st;
        unsigned mxcsr, initial = 0x1f80;
        memset(from, 0x11, 32);
        asm volatile("fninit; fldpi; vmovdqu %3,%%ymm1; ud2; vmovdqu %%ymm1,%0; stmxcsr %1\n"
                     "fstpl %2; fninit; ldmxcsr %4; vzeroupper"
                     : "=m"(to), "=m"(mxcsr), "=m"(st)
                     : "m"(from), "m"(initial)
                     : "xmm1", "memory");
        printf("%d: low %02x high %02x mxcsr %x st %.4f\n", mode, to[3], to[20], mxcsr, st);
    }
    return 0;
}
