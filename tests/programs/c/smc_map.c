// flags: -O2
// Code that is unmapped, mapped over, moved by mremap, discarded by madvise, and a file
// mapping whose file changes: never do old bytes run.
#include "fault.h"

typedef int (*function)(void);
static sigjmp_buf out;

static void gone(int signo, siginfo_t *info, void *uc) {
    (void)info, (void)uc;
    siglongjmp(out, signo);
}

static void put(void *at, int value) {
    unsigned char code[] = {0xb8, 0, 0, 0, 0, 0xc3}; // mov $value,%eax; ret
    memcpy(code + 1, &value, 4);
    memcpy(at, code, sizeof code);
}

static int call(void *at) {
    int sum = 0;
    for (int i = 0; i < 100; i++)
        sum += ((function)at)();
    return sum / 100;
}

static int faults(void *at) {
    int signo = sigsetjmp(out, 1);
    if (signo == 0)
        ((function)at)();
    return signo;
}

int main(void) {
    const int all = PROT_READ | PROT_WRITE | PROT_EXEC;
    handle(SIGSEGV, gone, 0);
    handle(SIGBUS, gone, 0);
    handle(SIGILL, gone, 0);
    for (volatile int round = 0; round < 50; round++) {
        char *at = pages(2, all);
        put(at, round);
        CHECK(call(at) == round);
        munmap(at, 8192);
        CHECK(faults(at) == SIGSEGV);
        CHECK(mmap(at, 8192, all, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
        put(at, round + 1);
        CHECK(call(at) == round + 1);
        CHECK(mmap(at, 4096, all, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
        put(at, round + 2);
        CHECK(call(at) == round + 2);
        char *moved = mremap(at, 8192, 16384, MREMAP_MAYMOVE);
        CHECK(moved != MAP_FAILED && call(moved) == round + 2);
        char *far = pages(4, PROT_NONE);
        CHECK(mremap(moved, 16384, 16384, MREMAP_MAYMOVE | MREMAP_FIXED, far) == far);
        CHECK(call(far) == round + 2 && faults(moved) == SIGSEGV);
        put(far + 8192, 77);
        CHECK(call(far + 8192) == 77);
        madvise(far, 16384, MADV_DONTNEED); // zeros: add %al,(%rax)
        CHECK(faults(far) == SIGSEGV);
        put(far, 5);
        CHECK(call(far) == 5);
        munmap(far, 16384);
    }
    FILE *file = tmpfile();
    char block[4096] = {0};
    put(block, 11);
    CHECK(pwrite(fileno(file), block, 4096, 0) == 4096);
    char *shared = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fileno(file), 0);
    if (shared == MAP_FAILED) {
        printf("right (noexec file system)\n");
        return 0;
    }
    CHECK(call(shared) == 11);
    CHECK(ftruncate(fileno(file), 0) == 0);
    CHECK(faults(shared) == SIGBUS);
    CHECK(ftruncate(fileno(file), 4096) == 0);
    printf("right\n");
    return 0;
}
