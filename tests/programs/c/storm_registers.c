// flags: -O1 -mno-red-zone
// A storm over a loop in which every register, the flags and the stack are a function of the
// iteration and the place. The handler checks them all, and now and then moves the loop to
// another iteration and another place by rewriting the whole state.
#include "storm.h"

extern char p0[], p1[], p2[], p3[], p4[], p5[], p6[], p7[], p8[], p9[], p10[], p11[], p12[],
    p13[], p14[], p15[], p16[];
static char *const places[] = {p0, p1, p2,  p3,  p4,  p5,  p6,  p7, p8,
                               p9, p10, p11, p12, p13, p14, p15, p16};
enum { PLACES = sizeof places / sizeof *places, TEST = 15 };
static const unsigned long K = 0x9e3779b97f4a7c15;
static OWN volatile long inside, moved;

enum { ZF = 0x40, CF = 1, SF = 0x80, OF = 0x800, PF = 4, AF = 0x10 };

struct state {
    unsigned long r8, r9, r10, r12, r13, r14, r15, rdx, stack, depth, flags, known;
};

static unsigned parity(unsigned long v) { return __builtin_parity(v & 255) ? 0 : PF; }

// Flags of `a + b`, of `a - b`, and of logic.
static unsigned flags_add(unsigned long a, unsigned long b) {
    unsigned long r = a + b;
    return (r < a ? CF : 0) | (r ? 0 : ZF) | (r >> 63 ? SF : 0) | parity(r) |
           ((a ^ b ^ r) & 16 ? AF : 0) | ((~(a ^ b) & (a ^ r)) >> 63 ? OF : 0);
}
static unsigned flags_sub(unsigned long a, unsigned long b) {
    unsigned long r = a - b;
    return (a < b ? CF : 0) | (r ? 0 : ZF) | (r >> 63 ? SF : 0) | parity(r) |
           ((a ^ b ^ r) & 16 ? AF : 0) | (((a ^ b) & (a ^ r)) >> 63 ? OF : 0);
}

// The state before the instruction at place `at` of iteration `i`.
static struct state model(unsigned long i, int at) {
    unsigned long before = K * (i * (i + 1) / 2), add = K * (i + 1), sum = before + add;
    struct state s = {
        .r8 = at > 14 ? i + 1 : i,
        .r9 = at > 0 ? i + 1 : i,
        .r10 = at <= 1 ? K * i : at == 2 ? i + 1 : add,
        .r12 = at > 4 ? add : K * i,
        .r13 = at > 6 ? sum : before,
        .r14 = at > 8 ? sum : before,
        .r15 = at > 11 ? i + 1 : i,
        .rdx = at <= 12 ? ~i : at == 13 ? i + 1 : ~(i + 1),
        .depth = at == 4 || at == 8 || at == 9,
        .known = CF | ZF | SF | OF | PF | AF,
    };
    s.stack = at == 4 ? s.r10 : (unsigned long)p10;
    __int128 exact = (__int128)(long)K * (long)(i + 1);
    if (at <= 2 || at == 16) // test
        s.flags = ZF | PF, s.known &= ~AF;
    else if (at <= 5) // imul defines two
        s.flags = exact != (long)exact ? CF | OF : 0, s.known = CF | OF;
    else if (at == 6)
        s.flags = flags_sub(add, i + 1);
    else if (at <= 11)
        s.flags = flags_add(before, add) | (at == 11 ? CF : 0);
    else
        s.flags = flags_add(i, 1);
    return s;
}

static void differ(const char *what, int at, unsigned long is, unsigned long want) {
    char text[64];
    snprintf(text, sizeof text, "%s at place %d", what, at);
    complain(text, is, want, 0);
}

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    taken++;
    int at = 0;
    while (at < PLACES && (char *)REG(uc, RIP) != places[at])
        at++;
    shoot(info->si_value.sival_int);
    if (at == PLACES || REG(uc, RBX) == 1) // 1: it is over
        return;
    inside++;
    unsigned long i = REG(uc, R8) - (at > 14);
    unsigned long base = REG(uc, RBP);
    struct state s = model(i, at);
#define SAME(reg, field)                                                                     \
    if ((unsigned long)REG(uc, reg) != s.field)                                              \
        differ(#reg, at, REG(uc, reg), s.field);
    SAME(R9, r9) SAME(R10, r10) SAME(R12, r12) SAME(R13, r13) SAME(R14, r14) SAME(R15, r15)
    SAME(RDX, rdx)
    if (((unsigned long)REG(uc, EFL) ^ s.flags) & s.known)
        differ("flags", at, REG(uc, EFL), s.flags);
    if ((unsigned long)REG(uc, RSP) != base - 8 * s.depth)
        differ("rsp", at, REG(uc, RSP), base - 8 * s.depth);
    if (s.depth && *(unsigned long *)(base - 8) != s.stack)
        differ("stack", at, *(unsigned long *)(base - 8), s.stack);
    if (REG(uc, RSI) != 0x1234567890 || REG(uc, RDI) != -77)
        differ("constant", at, REG(uc, RSI), REG(uc, RDI));
    if (next_random() % 4 == 0) { // elsewhere
        moved++;
        if (next_random() % 2)
            i = next_random() % 1000000;
        at = next_random() % PLACES;
        s = model(i, at);
        REG(uc, R8) = s.r8, REG(uc, R9) = s.r9, REG(uc, R10) = s.r10, REG(uc, R12) = s.r12;
        REG(uc, R13) = s.r13, REG(uc, R14) = s.r14, REG(uc, R15) = s.r15, REG(uc, RDX) = s.rdx;
        REG(uc, RSP) = base - 8 * s.depth;
        if (s.depth)
            *(unsigned long *)(base - 8) = s.stack;
        REG(uc, EFL) = (REG(uc, EFL) & ~(greg_t)s.known) | s.flags;
        REG(uc, RIP) = (greg_t)places[at];
    }
    if (taken >= wanted && at <= TEST)
        REG(uc, RBX) = 1;
}

// Returns whether it was what it should be: signals inside the loop, and moves.
__attribute__((noinline, noclone)) static int storm(long signals) {
    storm_prepare(SIGALRM, SIGRTMIN + 1);
    storm_begin(signals);
    while (taken < wanted)
        asm volatile("push %%rbp; push %%rbx; sub $64, %%rsp; mov %%rsp, %%rbp\n"
                     "xor %%r8d,%%r8d; xor %%r9d,%%r9d; xor %%r10d,%%r10d; xor %%r12d,%%r12d\n"
                     "xor %%r13d,%%r13d; xor %%r14d,%%r14d; xor %%r15d,%%r15d; mov $-1,%%rdx\n"
                     "mov $0x1234567890,%%rsi; mov $-77,%%rdi; xor %%ebx,%%ebx\n"
                     "test %%rbx,%%rbx\n"
                     "p0: lea 1(%%r8),%%r9\n"
                     "p1: mov %%r9,%%r10\n"
                     "p2: imul %%rax,%%r10\n"
                     "p3: push %%r10\n"
                     "p4: pop %%r12\n"
                     "p5: cmp %%r9,%%r10\n"
                     "p6: add %%r12,%%r13\n"
                     "p7: call p8\n"
                     "p10: stc\n"
                     "p11: adc $0,%%r15\n"
                     "p12: mov %%r9,%%rdx\n"
                     "p13: not %%rdx\n"
                     "p14: mov %%r9,%%r8\n"
                     "p15: test %%rbx,%%rbx\n"
                     "p16: jz p0\n"
                     "jmp 1f\n"
                     "p8: mov %%r13,%%r14\n"
                     "p9: ret\n"
                     "1: add $64,%%rsp; pop %%rbx; pop %%rbp\n"
                     :
                     : "a"(K)
                     : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                       "r15", "memory", "cc");
    storm_over();
    return inside > 0 && moved > 0;
}

#ifndef STORM_THREADS
int main(int argc, char **argv) {
    handle(SIGALRM, tick, 0);
    handle(SIGRTMIN + 1, tick, 0);
    printf("some inside and moved %d\n", storm(storm_size(argc, argv, 1)));
    return 0;
}
#endif
