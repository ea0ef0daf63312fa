// flags: -O1 -mno-red-zone
// A storm over a loop whose vector, mask and x87 registers are a function of the iteration
// and the place. The handler checks them in the frame's XSAVE area, whose marks and sizes
// are the kernel's, and moves the loop elsewhere by rewriting the area.
#include "storm.h"
#include <cpuid.h>
#include <stdint.h>

extern char q0[], q1[], q2[], q3[], q4[], q5[], q6[], q7[], q8[], q9[], q10[], q11[], q12[];
extern char a0[], a1[], a2[], a3[], a4[], a5[], a6[], a7[], a8[];
static char *const wide[] = {q0, q1, q2, q3, q4, q5, q6, q7, q8, q9, q10, q11, q12};
static char *const narrow[] = {a0, a1, a2, a3, a4, a5, a6, a7, a8};
static int avx512;
static volatile long inside, moved;
static unsigned offset_of[20], area_size;

// Registers that the loop sets, in order, and their factors.
static const int numbers[] = {0, 5, 15, 16, 31};
static const unsigned long factors[] = {1, 2, 3, 4, 6};

static unsigned long *quad(char *area, int reg, int i) {
    if (reg < 16 && i < 2)
        return (unsigned long *)(area + 160 + 16 * reg + 8 * i);
    if (reg < 16 && i < 4)
        return (unsigned long *)(area + offset_of[2] + 16 * reg + 8 * (i - 2));
    if (reg < 16)
        return (unsigned long *)(area + offset_of[6] + 32 * reg + 8 * (i - 4));
    return (unsigned long *)(area + offset_of[7] + 64 * (reg - 16) + 8 * i);
}

static unsigned long component(int reg, int i) {
    return reg >= 16 ? 1ul << 7 : i < 2 ? 2 : i < 4 ? 4 : 1ul << 6;
}

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    taken++;
    char *area = (char *)((ucontext_t *)uc)->uc_mcontext.fpregs;
    uint32_t *marks = (uint32_t *)(area + 464);
    if (marks[0] != 0x46505853 || *(uint32_t *)(area + marks[4]) != 0x46505845 ||
        marks[1] != marks[4] + 4 || marks[4] != area_size || (uintptr_t)area % 64)
        complain("marks", marks[0], marks[1], marks[4]);
    unsigned long *present = (unsigned long *)(area + 512);
    int count = avx512 ? 13 : 9, at = 0;
    char *const *places = avx512 ? wide : narrow;
    while (at < count && (char *)REG(uc, RIP) != places[at])
        at++;
    shoot(info->si_value.sival_int);
    if (at == count || REG(uc, RBX) == 1) // 1: it is over
        return;
    inside++;
    int registers = avx512 ? 5 : 3, quads = avx512 ? 8 : 4, after = registers;
    int masks = avx512 ? 2 : 0, loaded = after + masks + 2, step = loaded + 2;
    unsigned long i = REG(uc, R8) - (at >= step), want;
    for (int r = 0; r < registers; r++)
        for (int j = 0; j < quads; j++) {
            int has = (*present & component(numbers[r], j)) != 0;
            want = factors[r] * (at > r ? i : i - 1);
            unsigned long is = has ? *quad(area, numbers[r], j) : 0;
            if (is != want)
                complain("register", numbers[r] << 8 | at, is, want);
        }
    unsigned long *k = (unsigned long *)(area + offset_of[5]);
    if (avx512 && (k[1] != (at > after ? i : i - 1) || k[7] != ~(at > after + 1 ? i : i - 1)))
        complain("mask", k[1], k[7], at);
    long double st0;
    memcpy(&st0, area + 32, 10);
    unsigned top = *(uint16_t *)(area + 2) >> 11 & 7, tags = (unsigned char)area[4];
    if (at == loaded ? top != 7 || tags != 0x80 || st0 != (long double)i : top != 0 || tags != 0)
        complain("x87", top, tags, at);
    if (next_random() % 4 == 0) {
        moved++;
        i = next_random() % 1000000 + 1;
        at = next_random() % count;
        *present |= avx512 ? 0xe7 : 7;
        for (int r = 0; r < registers; r++)
            for (int j = 0; j < quads; j++)
                *quad(area, numbers[r], j) = factors[r] * (at > r ? i : i - 1);
        if (avx512)
            k[1] = at > after ? i : i - 1, k[7] = ~(at > after + 1 ? i : i - 1);
        uint16_t *status = (uint16_t *)(area + 2);
        *status = (uint16_t)((*status & ~0x3800) | (at == loaded ? 7 << 11 : 0));
        area[4] = at == loaded ? (char)0x80 : 0;
        st0 = (long double)i;
        memcpy(area + 32, &st0, 10);
        *(unsigned long *)REG(uc, RSP) = i;
        REG(uc, R8) = i + (at >= step);
        REG(uc, EFL) |= 0x40;
        REG(uc, RIP) = (greg_t)places[at];
    }
    // Its test is still to come.
    if (taken >= wanted && at < count - 1)
        REG(uc, RBX) = 1;
}

#define START                                                                               \
    "push %%rbx; sub $64,%%rsp; xor %%ebx,%%ebx; fninit; mov $1,%%r8d; movq $1,(%%rsp)\n"     \
    "vzeroall\n"
#define END "add $64,%%rsp; pop %%rbx\n"
#define TAKEN "r8", "r9", "memory", "cc", "xmm0", "xmm5", "xmm15", "st"

__attribute__((target("avx512f,avx512bw"))) static void with_avx512(void) {
    asm volatile(START "mov $-1,%%r9; vpxorq %%zmm16,%%zmm16,%%zmm16; vpxorq %%zmm31,%%zmm31,%%zmm31\n"
                 "kxorq %%k1,%%k1,%%k1; kmovq %%r9,%%k7; xor %%r9d,%%r9d\n"
                 "q0: vpbroadcastq %%r8,%%zmm0\n"
                 "q1: vpaddq %%zmm0,%%zmm0,%%zmm5\n"
                 "q2: vpaddq %%zmm5,%%zmm0,%%zmm15\n"
                 "q3: vpaddq %%zmm15,%%zmm0,%%zmm16\n"
                 "q4: vpaddq %%zmm16,%%zmm5,%%zmm31\n"
                 "q5: kmovq %%r8,%%k1\n"
                 "q6: knotq %%k1,%%k7\n"
                 "q7: mov %%r8,(%%rsp)\n"
                 "q8: fildq (%%rsp)\n"
                 "q9: fistpq 8(%%rsp)\n"
                 "q10: inc %%r8\n"
                 "q11: test %%rbx,%%rbx\n"
                 "q12: jz q0\n" END
                 :
                 :
                 : TAKEN, "xmm16", "xmm31", "k1", "k7");
}

__attribute__((target("avx2"))) static void with_avx(void) {
    asm volatile(START "a0: vmovq %%r8,%%xmm0; \n"
                 "vpbroadcastq %%xmm0,%%ymm0\n"
                 "a1: vpaddq %%ymm0,%%ymm0,%%ymm5\n"
                 "a2: vpaddq %%ymm5,%%ymm0,%%ymm15\n"
                 "a3: mov %%r8,(%%rsp)\n"
                 "a4: fildq (%%rsp)\n"
                 "a5: fistpq 8(%%rsp)\n"
                 "a6: inc %%r8\n"
                 "a7: test %%rbx,%%rbx\n"
                 "a8: jz a0\n" END
                 :
                 :
                 : TAKEN);
}

int main(int argc, char **argv) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (!__builtin_cpu_supports("avx2")) {
        printf("no AVX\n");
        return 0;
    }
    unsigned low, high;
    asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    area_size = 576;
    for (int i = 2; i < 18; i++) {
        __cpuid_count(13, i, a, b, c, d);
        if (i < 20)
            offset_of[i] = b;
        if (low >> i & 1 && a + b > area_size)
            area_size = a + b;
    }
    handle(SIGALRM, tick, 0);
    handle(SIGRTMIN + 1, tick, SA_ONSTACK);
    storm_prepare(SIGALRM, SIGRTMIN + 1);
    storm_begin(storm_size(argc, argv, 1));
    while (taken < wanted)
        avx512 ? with_avx512() : with_avx();
    storm_over();
    printf("some inside %d, some moved %d\n", inside > 0, moved > 0);
    return 0;
}
