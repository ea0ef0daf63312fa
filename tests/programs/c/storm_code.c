// flags: -O2
// A storm over ordinary code: recursion, indirect calls, switches, floating point and
// vectors. The handler spoils every register that it may, takes nested signals, and now and
// then leaves by siglongjmp; the results are those of a quiet run.
#include "storm.h"
#include <stdint.h>

static sigjmp_buf again;
static volatile sig_atomic_t may_jump;
static volatile long jumps, depth, deepest;

typedef uint64_t step_fn(uint64_t, unsigned);

static uint64_t step_mul(uint64_t x, unsigned n) { return x * 6364136223846793005u + n; }
static uint64_t step_xor(uint64_t x, unsigned n) { return x ^ x >> 17 ^ (uint64_t)n << 40; }
static uint64_t step_rec(uint64_t x, unsigned n) {
    return n < 2 ? x + n : step_rec(x ^ n, n - 1) + step_rec(x + n, n - 2);
}
static uint64_t step_switch(uint64_t x, unsigned n) {
    switch (x % 11) {
    case 0: return x + 1;
    case 1: return x * 3;
    case 2: return x ^ 0x5555;
    case 3: return x << 3 | x >> 61;
    case 4: return x - n;
    case 5: return ~x;
    case 6: return x / (n + 1);
    case 7: return x * x;
    default: return x + x % (n + 7);
    }
}
static uint64_t step_float(uint64_t x, unsigned n) {
    double a[8], sum = 0;
    for (int i = 0; i < 8; i++)
        a[i] = (double)(x >> (8 * i) & 255) + n;
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < 8; i++)
            a[i] = a[i] * 0.75 + a[(i + 3) % 8] * 0.25;
    for (int i = 0; i < 8; i++)
        sum += a[i];
    return x + (uint64_t)(sum * 1e6);
}
static uint64_t step_long_double(uint64_t x, unsigned n) {
    long double v = (long double)(x >> 11) / 3 + n;
    for (int i = 0; i < 20; i++)
        v = v / 1.25L + i;
    return x ^ (uint64_t)(v * 1000);
}

static step_fn *volatile const steps[] = {step_mul,    step_xor,   step_rec,
                                          step_switch, step_float, step_long_double};

static uint64_t work(uint64_t x) {
    for (unsigned i = 0; i < 400; i++)
        x = steps[(x >> 7) % 6](x, i % 9);
    return x;
}

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)uc;
    taken++;
    if (++depth > deepest)
        deepest = depth;
    asm volatile("mov $-1,%%rax; mov %%rax,%%rcx; mov %%rax,%%rdx; mov %%rax,%%rsi; mov %%rax,%%rdi\n"
                 "mov %%rax,%%r8; mov %%rax,%%r9; mov %%rax,%%r10; mov %%rax,%%r11; mov %%rax,%%rbx\n"
                 "mov %%rax,%%r12; mov %%rax,%%r13; mov %%rax,%%r14; mov %%rax,%%r15; stc\n"
                 "movq %%rax,%%xmm0; movq %%rax,%%xmm1; movq %%rax,%%xmm7; movq %%rax,%%xmm15\n"
                 "fld1; fldpi; fdivp; fstp %%st(0)\n"
                 : : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "rbx", "r12",
                       "r13", "r14", "r15", "cc", "xmm0", "xmm1", "xmm7", "xmm15");
    int i = info->si_value.sival_int;
    int leave = may_jump && next_random() % 16 == 0;
    shoot(i);
    depth--;
    if (leave) {
        may_jump = 0, jumps++, depth = 0;
        siglongjmp(again, 1);
    }
}

int main(int argc, char **argv) {
    enum { INPUTS = 8 };
    uint64_t expected[INPUTS];
    for (int i = 0; i < INPUTS; i++)
        expected[i] = work(i * 0x123456789abcdef);
    handle(SIGALRM, tick, 0);
    handle(SIGRTMIN + 1, tick, 0);
    storm_prepare(SIGALRM, SIGRTMIN + 1);
    storm_begin(storm_size(argc, argv, 1));
    volatile long rounds = 0;
    while (taken < wanted) {
        rounds++;
        int i = rounds % INPUTS;
        if (sigsetjmp(again, 1)) {
            // The shot of a handler that another interrupted may be lost with it.
            shoot(0), shoot(1);
            continue;
        }
        may_jump = 1;
        uint64_t result = work(i * 0x123456789abcdef);
        may_jump = 0;
        if (result != expected[i])
            complain("work", i, result, expected[i]);
    }
    storm_over();
    printf("some jumped %d\n", jumps > 0);
    return 0;
}
