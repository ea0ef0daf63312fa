// flags: -O1 -mfsgsbase
// The guest's own gs base (arch_prctl, wrgsbase), gs-relative operands of all shapes, fs
// base and thread-local variables. Temper uses gs itself, so none of it may be seen.
#include "fault.h"
#include <asm/prctl.h>
#include <immintrin.h>
#include <sys/auxv.h>
#include <sys/syscall.h>

static __thread long local = 11;
static volatile long ticks;

static void tick(int signo) {
    (void)signo;
    long value;
    asm volatile("mov %%gs:8,%0" : "=r"(value));
    ticks += value;
}

int main(void) {
    static long area[1024];
    unsigned long base = 1, fs;
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &base) == 0 && base == 0);
    CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, area + 16) == 0);
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &base) == 0 && base == (unsigned long)(area + 16));
    CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, 1ul << 63) == -1);
    signal(SIGUSR1, tick);
    for (long i = 0; i < 30000; i++) {
        long out, index = 3;
        asm volatile("mov %1,%%gs:8\n"
                     "addq $5,%%gs:8\n"
                     "mov %%gs:8,%0\n"
                     "mov %0,%%gs:(,%2,8)\n"
                     "movq $7,%%gs:200(%2,%2,8)\n"
                     "lock xadd %0,%%gs:(,%2,8)\n"
                     "push %%gs:(,%2,8)\n"
                     "popq %%gs:40\n"
                     "movups %%gs:32,%%xmm1\n"
                     "movups %%xmm1,%%gs:64\n"
                     : "=&r"(out)
                     : "r"(i), "r"(index)
                     : "memory", "xmm1");
        CHECK(out == i + 5 && area[17] == i + 5 && area[19] == 2 * i + 10);
        CHECK(area[21] == 2 * i + 10 && area[25] == area[21]);
        CHECK(*(long *)((char *)(area + 16) + 200 + 27) == 7);
        // String instructions take a segment override for their source alone.
        char *to = (char *)(area + 500);
        long from = 8, count = 8;
        asm volatile("rep movsb %%gs:(%%rsi),(%%rdi)" : "+S"(from), "+D"(to), "+c"(count)::"memory");
        CHECK(area[500] == i + 5);
        if (i % 10000 == 0)
            raise(SIGUSR1);
    }
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0);
    asm volatile("mov %%fs:0,%0" : "=r"(base));
    CHECK(fs == base);
    if (getauxval(AT_HWCAP2) & 2) {
        CHECK(_readfsbase_u64() == fs && _readgsbase_u64() == (unsigned long)(area + 16));
        _writegsbase_u64((unsigned long)(area + 100));
        area[101] = 99;
        asm volatile("mov %%gs:8,%0" : "=r"(base));
        CHECK(base == 99);
        CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &base) == 0);
        CHECK(base == (unsigned long)(area + 100));
        // Another fs base, for a moment, without calls in between.
        static long block[4] = {42, 43};
        asm volatile("wrfsbase %1; mov %%fs:8,%0; wrfsbase %2" : "=&r"(base) : "r"(block), "r"(fs));
        CHECK(base == 43);
    }
    unsigned short selectors[2];
    asm volatile("mov %%gs,%0; mov %%fs,%1" : "=m"(selectors[0]), "=m"(selectors[1]));
    printf("ticks %ld local %ld selectors %x %x\n", ticks, local, selectors[0], selectors[1]);
    return 0;
}
