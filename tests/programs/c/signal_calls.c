// flags: -O1
// Masks, queued real-time signals with values, sigpending, sigwaitinfo, sigtimedwait,
// sigsuspend, signalfd, SA_RESETHAND, sa_mask, kept and dropped flags, errors.
#include "fault.h"
#include <errno.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <time.h>

static void report(int signo, siginfo_t *info, void *uc) {
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    unsigned long saved, blocked;
    memcpy(&saved, &((ucontext_t *)uc)->uc_sigmask, 8);
    memcpy(&blocked, &now, 8);
    printf(" signal %d code %d value %d saved %lx blocked %lx\n", signo, info->si_code,
           info->si_code == SI_QUEUE ? info->si_value.sival_int : 0, saved, blocked);
}

// 0, or which error a call gave.
#define ERROR(call) ((call) == -1 ? errno : 0)

static void nothing(int signo) { (void)signo; }

static void queue(int signo, int value) {
    union sigval with = {.sival_int = value};
    CHECK(sigqueue(getpid(), signo, with) == 0);
}

int main(void) {
    sigset_t set, pending, old;
    siginfo_t info;
    struct timespec none = {0, 0}, little = {0, 2000000};
    int rt = SIGRTMIN;
    handle(rt, report, 0);
    handle(rt + 1, report, SA_NODEFER);
    handle(SIGUSR1, report, 0);
    sigemptyset(&set);
    sigaddset(&set, rt), sigaddset(&set, rt + 1), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGKILL);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int i = 0; i < 3; i++)
        queue(rt + 1, 10 + i), queue(rt, i), raise(SIGUSR1);
    sigpending(&pending);
    printf("pending %d %d %d %d\n", sigismember(&pending, SIGUSR1), sigismember(&pending, rt),
           sigismember(&pending, rt + 1), sigismember(&pending, SIGUSR2));
    printf("unblock\n");
    sigprocmask(SIG_UNBLOCK, &set, &old);
    printf("old had kill %d usr1 %d\n", sigismember(&old, SIGKILL), sigismember(&old, SIGUSR1));

    sigprocmask(SIG_BLOCK, &set, NULL);
    queue(rt, 21), queue(rt, 22), raise(SIGUSR1);
    for (int i = 0; i < 3; i++) {
        int got = sigwaitinfo(&set, &info);
        printf("waited: %d code %d\n", got, info.si_code);
    }
    printf("none: %d", ERROR(sigtimedwait(&set, &info, &none)));
    printf(" %d\n", ERROR(sigtimedwait(&set, &info, &little)));

    queue(rt, 31);
    sigemptyset(&pending);
    sigaddset(&pending, SIGUSR1);
    printf("suspend\n");
    printf("suspended: %d\n", ERROR(sigsuspend(&pending)));
    sigprocmask(SIG_BLOCK, NULL, &old);
    printf("mask again %d %d\n", sigismember(&old, rt), sigismember(&old, SIGUSR1));

    int fd = signalfd(-1, &set, SFD_NONBLOCK);
    struct signalfd_siginfo read_info;
    queue(rt + 1, 41);
    printf("signalfd %d", (int)read(fd, &read_info, sizeof read_info));
    printf(" %u %d\n", read_info.ssi_signo, read_info.ssi_int);
    printf("empty: %d\n", ERROR(read(fd, &read_info, sizeof read_info)));
    sigprocmask(SIG_UNBLOCK, &set, NULL);

    // Ignoring drops what is pending; a blocked synchronous signal can be sent and waited for.
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    signal(SIGUSR1, SIG_IGN);
    sigpending(&pending);
    printf("dropped %d\n", !sigismember(&pending, SIGUSR1));
    sigemptyset(&set);
    sigaddset(&set, SIGFPE);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGFPE);
    sigpending(&pending);
    printf("pending fpe %d, waited %d\n", sigismember(&pending, SIGFPE), sigwaitinfo(&set, &info));

    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESETHAND | SA_RESTART}, seen;
    sigaddset(&action.sa_mask, SIGHUP), sigaddset(&action.sa_mask, SIGKILL);
    sigaction(SIGUSR2, &action, NULL);
    raise(SIGUSR2);
    sigaction(SIGUSR2, NULL, &seen);
    printf("one shot: default %d flags %x mask %d %d\n", seen.sa_handler == SIG_DFL, seen.sa_flags & ~0x04000000,
           sigismember(&seen.sa_mask, SIGHUP), sigismember(&seen.sa_mask, SIGKILL));
    unsigned long raw[4] = {(unsigned long)SIG_IGN, ~0ul, 0, 0}, back[4];
    syscall(SYS_rt_sigaction, SIGURG, raw, NULL, 8);
    syscall(SYS_rt_sigaction, SIGURG, NULL, back, 8);
    printf("flags kept %lx\n", back[1]);
    printf("errors %d", ERROR(syscall(SYS_rt_sigaction, SIGKILL, raw, NULL, 8)));
    printf(" %d", ERROR(syscall(SYS_rt_sigaction, SIGURG, 8, NULL, 8)));
    printf(" %d", ERROR(syscall(SYS_rt_sigaction, SIGURG, raw, NULL, 4)));
    printf(" %d", ERROR(syscall(SYS_rt_sigprocmask, 3, raw, NULL, 8)));
    printf(" %d\n", ERROR(syscall(SYS_rt_sigprocmask, 0, 8, NULL, 8)));
    return 0;
}
