/* Byte by byte, as old programs do it: `bytes KERNEL LENGTH ROUNDS`, where the bytes end at
 * the end of a page behind which there is nothing. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef unsigned char byte;

static size_t copy(byte *to, const byte *from, size_t len)
{
    for (size_t i = 0; i < len; i++) to[i] = from[i];
    return to[len / 2];
}

static size_t fill(byte *to, const byte *from, size_t len)
{
    byte *end = to + len;
    (void)from;
    while (to < end) *to++ = 'x';
    return end[-1];
}

static size_t length(byte *to, const byte *from, size_t len)
{
    const byte *at = from;
    (void)to, (void)len;
    while (*at) at++;
    return at - from;
}

static size_t find(byte *to, const byte *from, size_t len)
{
    (void)to;
    for (size_t i = 0; i < len; i++)
        if (from[i] == 0) return i;
    return len;
}

static size_t same(byte *to, const byte *from, size_t len)
{
    size_t i = 0;
    while (i < len && to[i] == from[i]) i++;
    return i;
}

static size_t scasb(byte *to, const byte *from, size_t len)
{
    const byte *at = from;
    size_t left = len;
    (void)to;
    __asm__ volatile("repne scasb" : "+D"(at), "+c"(left) : "a"(0) : "cc", "memory");
    return at - from;
}

static size_t cmpsb(byte *to, const byte *from, size_t len)
{
    size_t left = len;
    __asm__ volatile("repe cmpsb" : "+D"(to), "+S"(from), "+c"(left) : : "cc", "memory");
    return left;
}

static const struct {
    const char *name;
    size_t (*run)(byte *, const byte *, size_t);
    int copied;
} kernels[] = {
    {"copy", copy, 0}, {"fill", fill, 0},   {"strlen", length, 0}, {"memchr", find, 0},
    {"memcmp", same, 1}, {"scasb", scasb, 0}, {"cmpsb", cmpsb, 1},
};

static byte *before_nothing(size_t len)
{
    size_t size = (len + 8191) & ~(size_t)4095;
    byte *pages = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + size, 4096, PROT_NONE)) exit(2);
    return pages + size - len;
}

int main(int argc, char **argv)
{
    size_t len = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    long rounds = argc > 3 ? atol(argv[3]) : 0;
    for (size_t k = 0; len && k < sizeof kernels / sizeof *kernels; k++) {
        if (strcmp(argv[1], kernels[k].name)) continue;
        byte *from = before_nothing(len), *to = before_nothing(len);
        for (size_t i = 0; i + 1 < len; i++) from[i] = 'a' + i % 26;
        from[len - 1] = 0;
        if (kernels[k].copied) memcpy(to, from, len);
        uint64_t sum = 0;
        for (long i = 0; i < rounds; i++) {
            /* Every alignment of a start; the ends stay where they are. */
            size_t skip = len > 8 ? i % 8 : 0;
            sum = sum * 31 + kernels[k].run(to + skip, from + skip, len - skip);
        }
        printf("%s %016llx\n", argv[1], (unsigned long long)sum);
        return 0;
    }
    fputs("usage: bytes KERNEL LENGTH ROUNDS\n", stderr);
    return 1;
}
