// flags: -O1
// mmap, munmap, mprotect, mremap, madvise, brk and mincore with all their errors, on ranges
// that are whole, have holes, or were never the program's.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static void say(const char *what, long result) {
    printf("%s: %s\n", what, result == -1 ? strerrorname_np(errno) : "ok");
}

static long page_of(void *at, char *base) {
    return at == MAP_FAILED ? -1 : ((char *)at - base) / (long)PAGE;
}

static int mapped(void *at) {
    unsigned char in_core;
    return mincore(at, PAGE, &in_core) == 0;
}

int main(void) {
    char *base = mmap(NULL, 64 * PAGE, PROT_NONE, ANON, -1, 0);
    say("reserve", (long)base);
    say("commit", mprotect(base, 16 * PAGE, RW));
    memset(base, 7, 16 * PAGE);
    say("zero length mmap", (long)mmap(NULL, 0, RW, ANON, -1, 0));
    say("unaligned offset", (long)mmap(NULL, PAGE, RW, MAP_PRIVATE, 0, 1));
    say("no such file", (long)mmap(NULL, PAGE, RW, MAP_PRIVATE, 999, 0));
    say("neither shared nor private", (long)mmap(NULL, PAGE, RW, MAP_ANONYMOUS, -1, 0));
    say("too large", (long)mmap(NULL, 1UL << 60, RW, ANON, -1, 0));
    say("kernel address", (long)mmap((void *)-PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    say("unaligned fixed", (long)mmap(base + 1, PAGE, RW, ANON | MAP_FIXED, -1, 0));

    say("hole", munmap(base + 4 * PAGE, 2 * PAGE));
    say("munmap again", munmap(base + 4 * PAGE, 2 * PAGE));
    say("unaligned munmap", munmap(base + 1, PAGE));
    say("zero munmap", munmap(base, 0));
    printf("mapped %d %d %d\n", mapped(base + 3 * PAGE), mapped(base + 4 * PAGE), mapped(base + 6 * PAGE));
    say("mprotect over a hole", mprotect(base, 8 * PAGE, PROT_READ));
    say("write before the hole", syscall(SYS_getrandom, base, 1, 0));
    say("write behind the hole", syscall(SYS_getrandom, base + 6 * PAGE, 1, 0));
    say("mprotect", mprotect(base, 4 * PAGE, RW));
    say("mprotect in a hole", mprotect(base + 4 * PAGE, PAGE, RW));
    say("unaligned mprotect", mprotect(base + 5, PAGE, RW));
    say("madvise over a hole", madvise(base + 3 * PAGE, 4 * PAGE, MADV_DONTNEED));
    printf("emptied %d %d\n", base[3 * PAGE], base[6 * PAGE + 1]);
    say("bad advice", madvise(base, PAGE, 12345));
    say("msync over a hole", msync(base, 8 * PAGE, MS_SYNC));
    say("mlock over a hole", mlock(base, 8 * PAGE));
    say("munlock before it", munlock(base, 4 * PAGE));

    void *at = mmap(base + 4 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
    printf("back in the hole at %ld\n", page_of(at, base));
    say("noreplace over something", (long)mmap(base, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    at = mmap(base + 2 * PAGE, 6 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
    printf("fixed over several at %ld: %d %d\n", page_of(at, base), base[PAGE], base[2 * PAGE]);

    memset(base, 9, 8 * PAGE);
    say("mremap shrink", (long)mremap(base, 8 * PAGE, 6 * PAGE, 0));
    printf("mapped %d %d\n", mapped(base + 5 * PAGE), mapped(base + 6 * PAGE));
    at = mremap(base, 6 * PAGE, 8 * PAGE, 0);
    printf("mremap grow in place at %ld\n", page_of(at, base));
    say("mremap grow into something", (long)mremap(base, 8 * PAGE, 12 * PAGE, 0));
    char *moved = mremap(base, 8 * PAGE, 100 * PAGE, MREMAP_MAYMOVE);
    printf("moved: %d, %d, old mapped %d\n", moved[0], moved[99 * PAGE], mapped(base));
    at = mremap(moved, 100 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, base);
    printf("moved back to %ld: %d, old mapped %d\n", page_of(at, base), base[0], mapped(moved));
    say("mremap of nothing", (long)mremap(moved, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    say("mremap to nothing", (long)mremap(base, PAGE, 0, MREMAP_MAYMOVE));
    say("mremap overlapping", (long)mremap(base, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, base + PAGE));
    say("mremap fixed without maymove", (long)mremap(base, PAGE, PAGE, MREMAP_FIXED, base + 20 * PAGE));
    say("mremap bad flags", (long)mremap(base, PAGE, PAGE, 64));
    char *left = mremap(base, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
    printf("dontunmap: %d, old %d\n", left[0], base[0]);

    char *shared = mmap(NULL, 2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *again = mremap(shared, 0, 2 * PAGE, MREMAP_MAYMOVE);
    shared[PAGE] = 42;
    printf("second mapping of shared memory: %d\n", again[PAGE]);

    char *low = mmap(NULL, 4 * PAGE, RW, ANON | MAP_32BIT, -1, 0);
    printf("32-bit mapping below 2 GiB: %d\n", (uintptr_t)low < 0x80000000UL);
    low[0] = 1;
    char *high = mmap((void *)0x500000000000, PAGE, RW, ANON, -1, 0);
    printf("high hint honoured: %d\n", high == (char *)0x500000000000);

    char *start = sbrk(0);
    say("sbrk", (long)sbrk(10 * PAGE + 5));
    memset(start, 1, 10 * PAGE + 5);
    printf("break moved by %ld\n", (long)((char *)sbrk(0) - start));
    say("sbrk back", (long)sbrk(-(10 * (long)PAGE + 5)));
    say("sbrk again", (long)sbrk(PAGE));
    printf("brk refused: %d\n", syscall(SYS_brk, 1) == (long)sbrk(0));
    printf("brk far too high: %d\n", syscall(SYS_brk, 0x7fffffff0000) == (long)sbrk(0));
    char *next = (char *)(((uintptr_t)sbrk(0) + 2 * PAGE) & -PAGE);
    say("block the break", (long)mmap(next, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    say("sbrk into it", (long)sbrk(16 * PAGE));

    int id = shmget(IPC_PRIVATE, 3 * PAGE - 100, IPC_CREAT | 0600);
    char *segment = shmat(id, NULL, 0);
    char *read_only = shmat(id, NULL, SHM_RDONLY);
    segment[3 * PAGE - 200] = 5;
    printf("segment twice: %d\n", read_only[3 * PAGE - 200]);
    say("attach over something", (long)shmat(id, base, 0));
    say("attach over something, remap", (long)shmat(id, base + 8 * PAGE, SHM_REMAP));
    printf("there: %d\n", base[11 * PAGE - 200]);
    say("detach", shmdt(segment));
    say("detach again", shmdt(segment));
    say("detach the rest", shmdt(read_only) | shmdt(base + 8 * PAGE));
    printf("mapped %d\n", mapped(base + 8 * PAGE));
    shmctl(id, IPC_RMID, NULL);

    say("mlock", mlock(base, PAGE));
    say("mlockall", mlockall(MCL_CURRENT | MCL_FUTURE));
    char *locked = mmap(NULL, 2 * PAGE, RW, ANON, -1, 0);
    unsigned char core[2] = {0};
    mincore(locked, 2 * PAGE, core);
    printf("locked from the start: %d\n", core[0] & core[1] & 1);
    say("munlockall", munlockall());
    say("mlockall bad flags", mlockall(8));

    char *grows = mmap(NULL, 1024 * PAGE, PROT_NONE, ANON, -1, 0);
    munmap(grows, 1024 * PAGE);
    grows = mmap(grows + 1000 * PAGE, 2 * PAGE, RW, ANON | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
    grows[0] = 1;
    grows[-(long)PAGE] = 1;
    grows[-3 * (long)PAGE] = 1;
    say("protect the grown part", mprotect(grows - 3 * PAGE, 5 * PAGE, PROT_READ));
    say("unmap it", munmap(grows - 3 * PAGE, 5 * PAGE));
    printf("mapped %d\n", mapped(grows - 3 * PAGE));
    return 0;
}
