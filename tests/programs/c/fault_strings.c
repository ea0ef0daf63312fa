// flags: -O1
// String instructions that fault in the middle show how far they came, and go on from there
// once the handler has mapped the page.
#include "fault.h"

static char *base;
static int faults;

static void map_it(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    printf("  rcx %llu rsi %lld rdi %lld addr %ld err %llx\n", REG(uc, RCX),
           REG(uc, RSI) - (greg_t)base, REG(uc, RDI) - (greg_t)base, (char *)info->si_addr - base,
           REG(uc, ERR));
    faults++;
    char *page = (char *)((unsigned long)info->si_addr & ~4095ul);
    if (mprotect(page, 4096, PROT_READ | PROT_WRITE))
        _exit(9);
}

// Pages 0, 1 open, 2, 3 closed and filled with `fill`; all else as the instruction needs.
#define STRING(code, si, di, cx, ax)                                                         \
    do {                                                                                     \
        mprotect(base, 4 * 4096, PROT_READ | PROT_WRITE);                                    \
        for (int i = 0; i < 4 * 4096; i++)                                                   \
            base[i] = 'a';                                                                   \
        mprotect(base + 2 * 4096, 2 * 4096, PROT_NONE);                                      \
        printf("%s\n", code);                                                                \
        void *s = base + (si), *d = base + (di);                                             \
        unsigned long c = (cx), a = (ax);                                                    \
        asm volatile(code "\ncld" : "+S"(s), "+D"(d), "+c"(c), "+a"(a) : : "memory", "cc");  \
        printf("  end: rcx %lu rsi %ld rdi %ld al %c\n", c, (char *)s - base,                \
               (char *)d - base, (char)a ? (char)a : '0');                                   \
    } while (0)

int main(void) {
    base = pages(4, PROT_READ | PROT_WRITE);
    handle(SIGSEGV, map_it, 0);
    STRING("rep movsb", 100, 2 * 4096 - 10, 5000, 0);
    STRING("rep movsb", 2 * 4096 - 7, 100, 20, 0);
    STRING("rep movsq", 0, 2 * 4096 - 64, 600, 0);
    STRING("rep movsl", 2 * 4096 - 10, 0, 8, 0);
    STRING("rep stosb", 0, 2 * 4096 - 3, 4100, 'x');
    STRING("rep stosq", 0, 2 * 4096 - 20, 8, 'x');
    STRING("repne scasb", 0, 2 * 4096 - 5, 100, 'z');
    STRING("repe cmpsb", 0, 2 * 4096 - 5, 100, 0);
    STRING("rep lodsb", 2 * 4096 - 5, 0, 9, 0);
    STRING("std; rep movsb", 6100, 3 * 4096, 6000, 0);
    STRING("std; rep stosw", 0, 2 * 4096 + 6, 10, 'y');
    STRING("movsq", 2 * 4096 - 4, 0, 0, 0);
    STRING("stosl", 0, 2 * 4096 - 2, 0, 'q');
    printf("%d faults\n", faults);
    return 0;
}
