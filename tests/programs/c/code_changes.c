// flags: -O1 -z execstack
// Code that is generated, patched, replaced, moved, aliased and read into, and pages that
// may not be executed.
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)
#define RW (PROT_READ | PROT_WRITE)
#define RX (PROT_READ | PROT_EXEC)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

typedef int (*function)(void);

// mov eax, value; ret
static void emit(char *at, int value) {
    at[0] = (char)0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = (char)0xc3;
}

static int run(char *at) {
    int sum = 0;
    for (int i = 0; i < 20; i++)
        sum += ((function)at)();
    return sum / 20;
}

static sigjmp_buf out;

static void caught(int signo, siginfo_t *info, void *context) {
    (void)context;
    printf("signal %d code %d\n", signo, info->si_code);
    siglongjmp(out, 1);
}

static void try_run(const char *what, char *at) {
    printf("%s: ", what);
    fflush(stdout);
    if (!sigsetjmp(out, 1))
        printf("%d\n", run(at));
}

static int nested(int n) {
    int total = 0;
    int add(int x) { return total += x; }
    int (*volatile pointer)(int) = add;
    for (int i = 0; i < n; i++)
        pointer(i);
    return total;
}

int main(void) {
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);

    char *code = mmap(NULL, 4 * PAGE, RWX, ANON, -1, 0);
    emit(code, 1);
    printf("generated: %d\n", run(code));
    emit(code, 2);
    printf("rewritten: %d\n", run(code));
    long sum = 0;
    for (int i = 0; i < 3000; i++) {
        memcpy(code + 1, &i, 4);
        sum += ((function)code)();
    }
    printf("rewritten often: %ld\n", sum);
    // A counter beside the code that uses it.
    emit(code + PAGE, 3);
    volatile int *counter = (int *)(code + PAGE + 64);
    for (int i = 0; i < 3000; i++)
        *counter += ((function)(code + PAGE))();
    printf("data beside code: %d\n", *counter);
    // An instruction that patches the next one: mov byte [rip+1], 9; mov al, 1; movzx; ret
    memcpy(code + 2 * PAGE, "\xc6\x05\x01\x00\x00\x00\x09\xb0\x01\x0f\xb6\xc0\xc3", 13);
    printf("patches itself: %d\n", run(code + 2 * PAGE));
    // Code that crosses a page, changed in its second half.
    emit(code + PAGE - 3, 0x01010101);
    int first = run(code + PAGE - 3);
    code[PAGE + 1] = 2;
    printf("across pages: %x %x\n", first, run(code + PAGE - 3));

    int pipes[2];
    char buffer[16];
    if (pipe(pipes))
        return 1;
    emit(code, 4);
    run(code);
    emit(buffer, 5);
    printf("write %zd ", write(pipes[1], buffer, 6));
    printf("read %zd ", read(pipes[0], code, 6));
    printf("into code: %d\n", run(code));
    emit(buffer, 6);
    struct iovec parts[2] = {{buffer + 8, 1}, {code, 6}};
    printf("write %zd ", write(pipes[1], buffer, 1) + write(pipes[1], buffer, 6));
    printf("readv %zd into code: %d\n", readv(pipes[0], parts, 2), run(code));
    int sockets[2];
    socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets);
    emit(buffer, 7);
    send(sockets[0], buffer, 6, 0);
    struct iovec part = {code, 6};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    printf("recvmsg %zd into code: ", recvmsg(sockets[1], &message, 0));
    printf("%d\n", run(code));
    struct timespec *now = (struct timespec *)(code + 128);
    printf("clock into a code page: %d\n", clock_gettime(CLOCK_MONOTONIC, now));
    printf("raw, too: %ld\n", syscall(SYS_clock_gettime, CLOCK_MONOTONIC, now));

    emit(code, 8);
    run(code);
    mprotect(code, PAGE, RW);
    try_run("no longer executable", code);
    emit(code, 9);
    mprotect(code, PAGE, RX);
    try_run("executable again", code);
    printf("write to it: ");
    fflush(stdout);
    if (!sigsetjmp(out, 1))
        emit(code, 10);
    try_run("unchanged", code);
    for (int i = 0; i < 200; i++) {
        mprotect(code, PAGE, RW);
        emit(code, i);
        mprotect(code, PAGE, RX);
        if (((function)code)() != i)
            printf("stale at %d\n", i);
    }
    try_run("flipped often", code);
    mmap(code, PAGE, RW, ANON | MAP_FIXED, -1, 0);
    emit(code, 11);
    mprotect(code, PAGE, RX);
    try_run("mapped over", code);
    munmap(code, PAGE);
    try_run("unmapped", code);
    mmap(code, PAGE, RWX, ANON | MAP_FIXED, -1, 0);
    emit(code, 12);
    try_run("mapped again", code);
    char *moved = mremap(code, PAGE, 2 * PAGE, MREMAP_MAYMOVE);
    try_run("moved", moved);
    if (moved != code)
        try_run("where it was", code);
    else
        printf("where it was: signal 11 code 1\n");
    madvise(moved, PAGE, MADV_DONTNEED);
    printf("emptied: ");
    fflush(stdout);
    if (!sigsetjmp(out, 1)) {
        emit(moved, 13);
        printf("%d\n", run(moved));
    }

    int file = memfd_create("code", 0);
    if (ftruncate(file, 2 * PAGE))
        return 1;
    char *writable = mmap(NULL, 2 * PAGE, RW, MAP_SHARED, file, 0);
    char *executable = mmap(NULL, 2 * PAGE, RX, MAP_SHARED, file, 0);
    for (int i = 0; i < 40; i++) {
        emit(writable + PAGE, i);
        if (run(executable + PAGE) != i)
            printf("stale through the alias at %d\n", i);
    }
    printf("two views: %d\n", run(executable + PAGE));
    char *later = mmap(NULL, PAGE, RW, MAP_SHARED, file, PAGE);
    emit(later, 77);
    printf("a third view: %d\n", run(executable + PAGE));
    try_run("data isn't code", writable + PAGE);

    char *high = mmap((void *)0x500000000000, PAGE, RWX, ANON | MAP_FIXED, -1, 0);
    emit(high, 14);
    printf("code far away: %d\n", run(high));
    emit(high, 15);
    printf("and changed: %d\n", run(high));

    char stack[16];
    emit(stack, 16);
    printf("on an executable stack: %d\n", run(stack));
    printf("nested function: %d\n", nested(100));
    try_run("not mapped", (char *)0x1000);
    try_run("string data", "\xc3\xc3");
    return 0;
}
