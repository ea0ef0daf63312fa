// flags: -O1 -mno-red-zone
// A storm over system calls: at SYSCALL all registers are the program's own, behind it RCX
// and R11 are what SYSCALL leaves, and the handler may move the program past the call or
// back before it. Blocking calls restart or tell EINTR as the handler's flags say, and no
// byte is lost or read twice.
#include "storm.h"
#include <errno.h>
#include <poll.h>
#include <sys/syscall.h>

extern char at_call[], behind_call[];
static long self;
static volatile long before, behind, moved, inside;
static volatile int part;
static int ends[2];
static volatile long written;

static void check_place(void *uc) {
    char *rip = (char *)REG(uc, RIP);
    if (rip == at_call) {
        inside++;
        if (REG(uc, RCX) != 0x1111 || REG(uc, R11) != 0x2222 || REG(uc, RAX) != SYS_getpid)
            complain("at the call", REG(uc, RAX), REG(uc, RCX), REG(uc, R11));
        if (next_random() % 4 == 0) { // as if made
            moved++;
            REG(uc, RAX) = self, REG(uc, RCX) = (greg_t)behind_call, REG(uc, R11) = REG(uc, EFL);
            REG(uc, RIP) = (greg_t)behind_call;
        }
    } else if (rip == behind_call) {
        inside++;
        if (REG(uc, RCX) != (greg_t)behind_call || (REG(uc, R11) ^ REG(uc, EFL)) & 0xcd5 ||
            REG(uc, RAX) != self)
            complain("behind the call", REG(uc, RAX), REG(uc, RCX), REG(uc, R11) ^ REG(uc, EFL));
        if (next_random() % 4 == 0) { // once more
            moved++;
            REG(uc, RAX) = SYS_getpid, REG(uc, RCX) = 0x1111, REG(uc, R11) = 0x2222;
            REG(uc, RIP) = (greg_t)at_call;
        }
    }
}

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    taken++;
    int error = errno;
    if (part == 0)
        check_place(uc);
    else if (part == 1 && taken <= wanted) {
        char byte = (char)written++;
        CHECK(write(ends[1], &byte, 1) == 1);
    }
    errno = error;
    shoot(info->si_value.sival_int);
}

static void calls(long signals) {
    storm_begin(signals);
    while (taken < wanted) {
        long result = SYS_getpid, rcx = 0x1111, left;
        asm volatile("mov $0x2222,%%r11d; stc\n"
                     "at_call: syscall\n"
                     "behind_call: setc %%r8b; movzbl %%r8b,%%r8d\n"
                     : "+a"(result), "+c"(rcx), "=&r"(left)
                     :
                     : "r8", "r11", "memory", "cc");
        (void)left;
        if (result != self)
            complain("getpid", result, self, rcx);
    }
    storm_over();
}

static void reads(long signals, int flags, int interrupts) {
    // One at a time, so that bytes are written in order.
    struct sigaction action = {.sa_sigaction = tick, .sa_flags = SA_SIGINFO | flags};
    sigfillset(&action.sa_mask);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && sigaction(SIGRTMIN + 1, &action, NULL) == 0);
    long got = 0, interrupted = 0;
    written = 0;
    storm_begin(signals);
    while (taken < wanted || got < written) {
        char bytes[3];
        long n = read(ends[0], bytes, sizeof bytes);
        if (n < 0 && errno == EINTR) {
            interrupted++;
            continue;
        }
        if (n <= 0)
            complain("read", n, errno, got);
        for (long i = 0; i < n; i++)
            if (bytes[i] != (char)(got + i))
                complain("byte", bytes[i], got + i, n);
        got += n;
    }
    storm_over();
    printf("all read %d, interruptions as they should be %d\n", got == written,
           interrupts ? interrupted > 0 : interrupted == 0);
}

static void sleeps(long signals) {
    storm_begin(signals);
    long slept = 0;
    while (taken < wanted) {
        struct timespec in = {0, 30000}, left = {7, 7};
        struct pollfd poller = {.fd = ends[0], .events = POLLIN};
        long before_it = taken;
        int result = slept % 2 ? nanosleep(&in, &left) : ppoll(&poller, 1, &in, NULL);
        if (result == -1 && (errno != EINTR || taken == before_it))
            complain("sleep", errno, slept, taken - before_it);
        if (result == -1 && slept % 2 && (left.tv_sec || left.tv_nsec > 1000000))
            complain("left", left.tv_sec, left.tv_nsec, 0);
        slept++;
    }
    storm_over();
}

int main(int argc, char **argv) {
    long each = storm_size(argc, argv, 4);
    self = getpid();
    CHECK(pipe(ends) == 0);
    handle(SIGALRM, tick, 0);
    handle(SIGRTMIN + 1, tick, SA_NODEFER);
    storm_prepare(SIGALRM, SIGRTMIN + 1);
    part = 0;
    calls(each);
    printf("some at calls %d, some moved %d\n", inside > 0, moved > 0);
    part = 1;
    reads(each, SA_RESTART, 0);
    reads(each, 0, 1);
    part = 2;
    sleeps(each);
    return 0;
}
