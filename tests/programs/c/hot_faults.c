// flags: -O0 -static -no-pie -w
// Hot loops over pages that are taken away now and then: at each fault the handler reports all
// registers, the flags and the code address, gives the page back, and the loop goes on.
#include "fault.h"

enum { PAGES = 12, ROUNDS = 360 };
static char *const base = (char *)0x200000;
static char *stack;
static unsigned long sum = 1;
static long faults;

static void mix(unsigned long value) { sum = (sum ^ value) * 1099511628211ul; }

static void report(const char *name, unsigned long value) {
    long at = (char *)value - stack;
    if (at > -65536 && at < 512)
        printf(" %s=S%+ld", name, at);
    else if (at > -(8 << 20) && at < 8 << 20)
        printf(" %s=S", name);
    else
        printf(" %s=%lx", name, value);
}

static void on_fault(int signo, siginfo_t *info, void *uc) {
    static const char *const names[] = {"r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15",
                                        "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp",
                                        "rip"};
    greg_t *regs = ((ucontext_t *)uc)->uc_mcontext.gregs;
    struct _libc_fpstate *fp = ((ucontext_t *)uc)->uc_mcontext.fpregs;
    long page = ((char *)info->si_addr - base) / 4096;
    if (page < 0 || page >= PAGES)
        _exit(98);
    printf("%d %ld %ld", signo, page, (long)info->si_addr & 4095);
    for (int i = 0; i < 17; i++)
        report(names[i], regs[i]);
    unsigned long vectors = 1;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 2; j++)
            vectors = (vectors ^ fp->_xmm[i].element[j]) * 1099511628211ul;
    printf(" flags=%llx vectors=%lx\n", regs[REG_EFL] & 0xcd5, vectors);
    mprotect(base + page * 4096, 4096, PROT_READ | PROT_WRITE);
    faults++;
}

// The place `i` of page `page`, as a pointer to anything.
#define AT(type, page) ((type *)(base + (page) * 4096))

__attribute__((noinline)) static long through(int *p, long *q, int by) {
    long before = *p;
    *p += by;
    *q ^= before << 3;
    return before + *q;
}

__attribute__((noinline)) static unsigned long integers(int n) {
    long total = 3, other = 5;
    unsigned h = 2166136261u;
    short narrow = 7;
    unsigned char byte = 9;
    for (int i = 0; i < n; i++) {
        int k = i & 31;
        h = (h ^ AT(unsigned char, 0)[k]) * 16777619u;
        AT(int, 1)[k] += h;
        AT(long, 2)[k * 2 + 1] = total + i;
        narrow += AT(short, 3)[k];
        AT(char, 4)[k + 3] ^= byte;
        byte = byte * 3 + narrow;
        if (total - 7 < AT(long, 5)[k])
            total += other;
        else
            other -= 3;
        AT(unsigned, 6)[k] <<= i & 7;
        total += through(AT(int, 7) + k, AT(long, 8) + k, i - 4);
        int place = k * 4 - 1;
        AT(int, 9)[place + 1] = place - (int)other;
        AT(int, 9)[k + 40]++;
        total -= AT(long, 10)[k] / 3 + (AT(int, 10)[k] > i);
    }
    return total ^ other ^ h ^ narrow ^ byte;
}

__attribute__((noinline)) static unsigned long reals(int n) {
    double x = 0.5, y = 1.25;
    float z = 3;
    long w = 1;
    for (int i = 0; i < n; i++) {
        int k = i & 63;
        x = x * 0.75 + AT(double, 0)[k];
        AT(double, 1)[k] = x - y;
        z += AT(float, 2)[k + 1];
        AT(float, 3)[k] = z * 0.5f;
        y = AT(int, 4)[k] * 0.001 + y * 0.5;
        w += x > AT(double, 5)[k] * 1e-300;
        AT(long, 6)[k] = (long)y + w;
        AT(double, 7)[k] += z;
        AT(long double, 8)[k] = x;
        if (z > 1e6f)
            z = 1;
        if (x > 1e6 || x < -1e6)
            x = 2;
    }
    return (long)(x * 1000) ^ (long)(y * 1000) ^ (long)z ^ w;
}

// Flags that live across accesses, and accesses that compilers rarely write.
__attribute__((noinline)) static unsigned long chains(int n) {
    unsigned long low = 1, high = 2, third = 3;
    for (int i = 0; i < n; i++) {
        long *a = AT(long, 0) + (i & 31), *b = AT(long, 1) + (i & 31), *c = AT(long, 2);
        asm volatile("add %[low], (%[a])\n adc (%[b]), %[high]\n sbb %[high], 8(%[c])\n"
                     "setc %b[third]\n cmp %[low], %[high]\n cmovb 16(%[c]), %[low]\n"
                     "xchg %[third], 24(%[c])\n lock incl 32(%[c])\n rolq %%cl, 40(%[c])\n"
                     "push 48(%[c])\n mov 56(%[c]), %%eax\n cltq\n lea 5(%%rax,%%rax,2), %%rdx\n"
                     "add (%%rsp), %%rdx\n mov %%rdx, 64(%[c])\n add $8, %%rsp\n"
                     "xaddq %[low], 72(%[c])\n shlq $3, 80(%[c])\n notl 88(%[c])\n"
                     : [low] "+r"(low), [high] "+r"(high), [third] "+Q"(third)
                     : [a] "r"(a), [b] "r"(b), [c] "r"(c), "c"(i)
                     : "rax", "rdx", "cc", "memory");
    }
    return low ^ high ^ third;
}

int main(void) {
    char here = 0;
    stack = &here;
    if (mmap(base, PAGES * 4096, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != base)
        return 97;
    handle(SIGSEGV, on_fault, 0);
    unsigned random = 12345;
    for (int round = 0; round < ROUNDS; round++) {
        for (int n = 0; n < 3 && round > 30; n++) {
            random = random * 1103515245 + 12345;
            mprotect(base + (random >> 16) % PAGES * 4096, 4096,
                     (random >> 8) % 2 ? PROT_READ : PROT_NONE);
        }
        mix(integers(70));
        mix(reals(70));
        mix(chains(70));
        if (round % 20 == 0)
            printf("round %d: %lx\n", round, sum);
    }
    printf("%lx %d\n", sum, faults > 300);
    return 0;
}
