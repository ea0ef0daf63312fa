// flags: -O2
// A random sequence of mmap, munmap, mprotect, mremap, madvise and brk over a window of
// pages, against a model of it. Contents and access rights are compared all along; access
// is probed by system calls (EFAULT) and by faults.
#include "fault.h"
#include <errno.h>

enum { PAGES = 64, STEPS = 6000 };
static struct { int mapped, rights; unsigned char value; } model[PAGES];
static char *window;
static int ends[2];
static sigjmp_buf out;
static unsigned long seed = 12345;

static unsigned random_below(unsigned n) {
    seed = seed * 6364136223846793005ul + 1442695040888963407ul;
    return (unsigned)(seed >> 33) % n;
}

static void refused(int signo) { siglongjmp(out, signo); }

static int readable(char *at, unsigned char *value) {
    if (random_below(2)) {
        // The kernel's view.
        if (write(ends[1], at, 1) != 1) {
            CHECK(errno == EFAULT);
            return 0;
        }
        CHECK(read(ends[0], value, 1) == 1);
        return 1;
    }
    if (sigsetjmp(out, 1))
        return 0;
    *value = *(volatile unsigned char *)at;
    return 1;
}

static int writable(char *at, unsigned char value) {
    if (random_below(2)) {
        CHECK(write(ends[1], &value, 1) == 1);
        if (read(ends[0], at, 1) == 1)
            return 1;
        CHECK(errno == EFAULT);
        unsigned char drop;
        CHECK(read(ends[0], &drop, 1) == 1);
        return 0;
    }
    if (sigsetjmp(out, 1))
        return 0;
    *(volatile unsigned char *)at = value;
    return 1;
}

int main(void) {
    CHECK(pipe(ends) == 0);
    signal(SIGSEGV, refused);
    window = pages(PAGES, PROT_NONE);
    for (int i = 0; i < PAGES; i++)
        model[i].mapped = 1;
    long done[5] = {0};
    for (int step = 0; step < STEPS; step++) {
        int first = random_below(PAGES), count = 1 + random_below(PAGES - first > 8 ? 8 : PAGES - first);
        int choices[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC};
        int rights = choices[random_below(5)], whole = 1;
        char *at = window + first * 4096l;
        size_t size = count * 4096l;
        for (int i = first; i < first + count; i++)
            whole &= model[i].mapped;
        int kind = random_below(5);
        if (kind == 0) {
            CHECK(mmap(at, size, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
            for (int i = first; i < first + count; i++)
                model[i].mapped = 1, model[i].rights = rights, model[i].value = 0;
        } else if (kind == 1) {
            CHECK(munmap(at, size) == 0);
            for (int i = first; i < first + count; i++)
                model[i].mapped = 0;
        } else if (kind == 2) {
            int result = mprotect(at, size, rights);
            CHECK((result == 0) == whole && (whole || errno == ENOMEM));
            // Like the kernel, up to the first hole.
            for (int i = first; i < first + count && model[i].mapped; i++)
                model[i].rights = rights;
        } else if (kind == 3) {
            CHECK((madvise(at, size, MADV_DONTNEED) == 0) == whole);
            for (int i = first; i < first + count; i++)
                model[i].value = 0;
        } else if (whole) {
            // Move one page's mapping elsewhere in the window.
            int to = random_below(PAGES);
            char *target = window + to * 4096l;
            if (to != first) {
                CHECK(mremap(at, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
                model[to] = model[first];
                model[first].mapped = 0;
            }
        }
        done[kind]++;
        for (int probe = 0; probe < 6; probe++) {
            int i = random_below(PAGES);
            unsigned char value = 0, next = (unsigned char)random_below(256);
            char *byte = window + i * 4096l + 77;
            int can = model[i].mapped && (model[i].rights & PROT_READ);
            CHECK(readable(byte, &value) == can);
            CHECK(!can || value == model[i].value);
            can = model[i].mapped && (model[i].rights & PROT_WRITE);
            CHECK(writable(byte, next) == can);
            if (can)
                model[i].value = next;
        }
    }
    // brk up, down and up again: new pages are zero, old ones go.
    char *start = sbrk(0);
    for (int i = 1; i < 200; i++) {
        CHECK(sbrk(3 * 4096 + 16) != (void *)-1);
        char *top = sbrk(0);
        CHECK(top == start + 3 * 4096 + 16 && top[-1] == 0 && top[-4096] == 0);
        memset(start, i, top - start);
        CHECK(sbrk(-(3 * 4096 + 16)) != (void *)-1 && sbrk(0) == start);
    }
    printf("%ld %ld %ld %ld %ld\n", done[0], done[1], done[2], done[3], done[4]);
    return 0;
}
