// flags: -O0
// heavy
// Signals in a hot loop over frame slots: at each one, registers, flags and frame are a
// function of the iteration and of the place.
#include "fault.h"
#include <sys/time.h>

extern char p0[], p1[], p2[], p3[], p4[], p5[], p6[], p7[], p8[], p9[], p10[], p11[], p12[];
static char *const places[] = {p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12};
enum { PLACES = sizeof places / sizeof *places, COUNT = 1000, WANTED = 1500 };
enum { FLAGS = 0x8c5, CARRY = 1, PARITY = 4, ZERO = 0x40, SIGN = 0x80 };
static long data[COUNT];
static volatile long taken, wrong;
static volatile int inside;

static unsigned flags_of_sub(int a, int b) {
    int r = a - b;
    return ((unsigned)a < (unsigned)b ? CARRY : 0) | (r ? 0 : ZERO) | (r < 0 ? SIGN : 0) |
           (__builtin_parity(r & 255) ? 0 : PARITY);
}

static void want(const char *what, int at, long is, long expected) {
    if (is != expected && wrong++ < 8)
        printf("at place %d, %s is %ld instead of %ld\n", at, what, is, expected);
}

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    int at = 0;
    while (at < PLACES && (char *)REG(uc, RIP) != places[at])
        at++;
    if (at == PLACES)
        return;
    taken++;
    char *frame = (char *)REG(uc, RBP);
    long i = *(int *)(frame - 8), n = *(int *)(frame - 12);
    // The iteration that the place belongs to.
    long k = at > 8 ? i - 1 : i;
    long sum = *(long *)(frame - 24);
    want("the sum", at, sum, at > 7 ? 3 * k * (k + 1) / 2 : 3 * k * (k - 1) / 2);
    double real;
    memcpy(&real, frame - 40, 8);
    want("the real", at, (long)real, at > 6 ? 2 * k + 2 : 2 * k);
    if (k == 0)
        return;
    long base = (long)data;
    want("rax", at, REG(uc, RAX),
         at == 0 || at == 1 ? k : at == 2 || at == 3 ? k
         : at == 4          ? base
         : at <= 9          ? base + 8 * k
                            : i);
    want("rdx", at, REG(uc, RDX), at <= 2 ? 8 * (k - 1) : 8 * k);
    want("rcx", at, REG(uc, RCX), at <= 5 ? 3 * (k - 1) : 3 * k);
    if (at <= 4)
        want("flags", at, REG(uc, EFL) & FLAGS, flags_of_sub(i, n));
    if (at >= 11)
        want("flags", at, REG(uc, EFL) & FLAGS, flags_of_sub(i, n));
}

int main(void) {
    for (int i = 0; i < COUNT; i++)
        data[i] = 3 * i;
    handle(SIGALRM, tick, SA_RESTART);
    struct itimerval often = {{0, 150}, {0, 150}};
    setitimer(ITIMER_REAL, &often, NULL);
    unsigned long total = 0;
    static const double two = 2;
    for (long round = 0; taken < WANTED; round++) {
        long sum;
        asm volatile("push %%rbp\n lea -256(%%rsp), %%rsp\n push %%rbp\n mov %%rsp, %%rbp\n"
                     "sub $64, %%rsp\n"
                     "movl $0, -8(%%rbp)\n movl %[n], -12(%%rbp)\n mov %[base], -32(%%rbp)\n"
                     "movq $0, -24(%%rbp)\n movq $0, -40(%%rbp)\n"
                     "movapd %[two], %%xmm1\n"
                     "cmpl $0, -12(%%rbp)\n"
                     "p0: movl -8(%%rbp), %%eax\n"
                     "p1: cltq\n"
                     "p2: leaq 0(,%%rax,8), %%rdx\n"
                     "p3: movq -32(%%rbp), %%rax\n"
                     "p4: addq %%rdx, %%rax\n"
                     "p5: movq (%%rax), %%rcx\n"
                     "movsd -40(%%rbp), %%xmm0\n"
                     "addsd %%xmm1, %%xmm0\n"
                     "p6: movsd %%xmm0, -40(%%rbp)\n"
                     "p7: addq %%rcx, -24(%%rbp)\n"
                     "p8: addl $1, -8(%%rbp)\n"
                     "p9: movl -8(%%rbp), %%eax\n"
                     "p10: cmpl -12(%%rbp), %%eax\n"
                     "p11: jl p0\n"
                     "p12: movq -24(%%rbp), %[sum]\n"
                     "leave\n lea 256(%%rsp), %%rsp\n pop %%rbp\n"
                     : [sum] "=&r"(sum)
                     : [n] "r"(COUNT), [base] "r"(data), [two] "x"(two)
                     : "rax", "rcx", "rdx", "xmm0", "xmm1", "cc", "memory");
        total += sum - 3L * COUNT * (COUNT - 1) / 2;
    }
    printf("%lu %s\n", total, wrong ? "wrong" : "exact");
    return wrong != 0;
}
