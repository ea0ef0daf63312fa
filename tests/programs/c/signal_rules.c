// flags: -O1
// Rules of signal(7) and sigaction(2) that programs see: which handler runs when several
// signals wait, what each frame saves, who may interrupt whom, what SIG_IGN and SIG_DFL do
// to what waits, values and senders in siginfo, limits, errors.
#include "fault.h"
#include <errno.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define ERROR(call) ((call) == -1 ? errno : 0)

static char log_[4096];
static int length, nesting, raised;

static void note(const char *text, int a, int b) {
    length += snprintf(log_ + length, sizeof log_ - length, " %s%d/%d", text, a, b);
}

static void show(const char *what) {
    printf("%s:%s\n", what, log_);
    length = 0, log_[0] = 0;
}

static sigset_t set_of(int a, int b, int c) {
    sigset_t set;
    sigemptyset(&set);
    if (a) sigaddset(&set, a);
    if (b) sigaddset(&set, b);
    if (c) sigaddset(&set, c);
    return set;
}

static void mask(int how, int a, int b, int c) {
    sigset_t set = set_of(a, b, c);
    CHECK(sigprocmask(how, &set, NULL) == 0);
}

static unsigned long blocked(void) {
    unsigned long now;
    CHECK(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &now, 8) == 0);
    return now;
}

static void enter(int signo, siginfo_t *info, void *uc) {
    (void)uc;
    note("(", signo, info->si_code == SI_QUEUE ? info->si_value.sival_int : -1);
    nesting++;
    note("n", nesting, 0);
    nesting--;
    note(")", signo, 0);
}

static void raises(int signo, siginfo_t *info, void *uc) {
    (void)info, (void)uc;
    note("[", signo, ++nesting);
    if (++raised % 4)
        raise(signo);
    note("]", signo, nesting--);
}

static void masks(int signo, siginfo_t *info, void *uc) {
    (void)info;
    unsigned long saved;
    memcpy(&saved, &((ucontext_t *)uc)->uc_sigmask, 8);
    printf(" %d: saved %lx blocked %lx\n", signo, saved, blocked());
}

static void with_mask(int signo, void (*handler)(int, siginfo_t *, void *), int flags, sigset_t m) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags, .sa_mask = m};
    CHECK(sigaction(signo, &action, NULL) == 0);
}

static void queue(int signo, int value) {
    CHECK(sigqueue(getpid(), signo, (union sigval){.sival_int = value}) == 0);
}

static void edits_mask(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    sigaddset(&((ucontext_t *)uc)->uc_sigmask, SIGWINCH);
    sigdelset(&((ucontext_t *)uc)->uc_sigmask, SIGHUP);
}

static void who(int signo, siginfo_t *info, void *uc) {
    (void)uc;
    printf(" %d: errno %d code %d self %d user %d value %d\n", signo, info->si_errno, info->si_code,
           info->si_pid == getpid(), info->si_uid == getuid(), info->si_value.sival_int);
}

int main(void) {
    int rt = SIGRTMIN;
    // Low numbers first; each handler is on top of those before it, unless masked.
    for (int signo = rt; signo < rt + 3; signo++)
        handle(signo, enter, 0);
    handle(SIGUSR1, enter, 0);
    handle(SIGTERM, enter, 0);
    mask(SIG_BLOCK, SIGUSR1, SIGTERM, rt);
    mask(SIG_BLOCK, rt + 1, rt + 2, 0);
    queue(rt + 2, 1), queue(rt, 2), queue(rt + 1, 3), queue(rt, 4), queue(SIGTERM, 5);
    queue(SIGUSR1, 6), queue(SIGUSR1, 7), queue(rt + 2, 8);
    sigset_t all = set_of(SIGUSR1, SIGTERM, rt);
    sigaddset(&all, rt + 1), sigaddset(&all, rt + 2);
    sigprocmask(SIG_UNBLOCK, &all, NULL);
    show("order");

    sigset_t full;
    sigfillset(&full);
    for (int signo = rt; signo < rt + 3; signo++)
        with_mask(signo, enter, 0, full);
    sigprocmask(SIG_BLOCK, &all, NULL);
    queue(rt + 2, 1), queue(rt, 2), queue(rt + 1, 3), queue(rt, 4);
    sigprocmask(SIG_UNBLOCK, &all, NULL);
    show("one after the other");

    // Synchronous signals that were sent go before others.
    handle(SIGHUP, enter, 0);
    handle(SIGFPE, enter, 0);
    handle(SIGSEGV, enter, 0);
    mask(SIG_BLOCK, SIGHUP, SIGFPE, SIGSEGV);
    raise(SIGHUP), raise(SIGSEGV), raise(SIGFPE);
    mask(SIG_UNBLOCK, SIGHUP, SIGFPE, SIGSEGV);
    show("sent faults");

    with_mask(SIGUSR1, raises, SA_NODEFER, set_of(0, 0, 0));
    with_mask(SIGUSR2, raises, 0, set_of(0, 0, 0));
    raise(SIGUSR1);
    show("nodefer");
    raise(SIGUSR2);
    show("deferred");

    printf("masks\n");
    mask(SIG_SETMASK, SIGWINCH, 0, 0);
    with_mask(SIGUSR1, masks, 0, set_of(SIGHUP, SIGKILL, SIGSEGV));
    with_mask(SIGUSR2, masks, SA_NODEFER, set_of(SIGTERM, 0, 0));
    raise(SIGUSR1), raise(SIGUSR2);
    printf("after %lx\n", blocked());
    mask(SIG_BLOCK, SIGUSR1, SIGUSR2, 0);
    raise(SIGUSR1), raise(SIGUSR2);
    sigset_t only = set_of(SIGUSR1, SIGCHLD, 0);
    printf("suspend %d\n", ERROR(sigsuspend(&only)));
    printf("after %lx\n", blocked());
    mask(SIG_SETMASK, SIGHUP, 0, 0);
    with_mask(SIGUSR1, edits_mask, 0, set_of(0, 0, 0));
    raise(SIGUSR1);
    printf("edited %lx\n", blocked());
    mask(SIG_SETMASK, 0, 0, 0);

    // What waits is dropped when it becomes ignored, and stays otherwise.
    sigset_t pending;
    mask(SIG_BLOCK, SIGUSR1, SIGCHLD, rt);
    handle(SIGCHLD, enter, 0);
    handle(rt, enter, 0);
    raise(SIGUSR1), raise(SIGCHLD), queue(rt, 1), queue(rt, 2);
    signal(SIGUSR1, SIG_DFL), signal(SIGCHLD, SIG_DFL), signal(rt, SIG_IGN);
    sigpending(&pending);
    printf("pending %d %d %d\n", sigismember(&pending, SIGUSR1), sigismember(&pending, SIGCHLD),
           sigismember(&pending, rt));
    signal(SIGUSR1, SIG_IGN);
    sigpending(&pending);
    printf("pending %d\n", sigismember(&pending, SIGUSR1));
    raise(SIGUSR1);
    sigpending(&pending);
    printf("ignored while blocked: pending %d\n", sigismember(&pending, SIGUSR1));
    handle(SIGUSR1, enter, 0);
    mask(SIG_SETMASK, 0, 0, 0);
    show("then");

    printf("senders\n");
    int kinds[] = {SIGUSR1, SIGURG, rt + 1};
    for (int i = 0; i < 3; i++)
        handle(kinds[i], who, 0);
    queue(SIGUSR1, 42);
    raise(SIGURG);
    syscall(SYS_tkill, syscall(SYS_gettid), rt + 1);
    siginfo_t info = {.si_code = -60, .si_errno = 7};
    info.si_pid = getpid(), info.si_uid = getuid(), info.si_value.sival_int = -5;
    printf("%d\n", ERROR(syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR1, &info)));
    printf("%d\n", ERROR(syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), rt + 1, &info)));
    // To itself a process may send what looks like the kernel's, faults too.
    handle(SIGSEGV, who, 0);
    info.si_code = SEGV_MAPERR, info.si_errno = 0;
    printf("%d\n", ERROR(syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGSEGV, &info)));
    printf("errors %d", ERROR(syscall(SYS_tgkill, getpid(), 0, SIGUSR1)));
    printf(" %d", ERROR(kill(getpid(), 65)));
    printf(" %d", ERROR(kill(getpid(), 0)));
    printf(" %d", ERROR(syscall(SYS_tgkill, getpid(), getpid(), -1)));
    printf(" %d\n", ERROR(sigqueue(1 << 22, SIGUSR1, (union sigval){.sival_int = 0})));

    // The two signals that the C library keeps are ordinary to the kernel.
    for (int signo = 32; signo < 34; signo++) {
        struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } raw, with;
        CHECK(sigaction(SIGUSR1, NULL, (struct sigaction *)NULL) == 0);
        CHECK(syscall(SYS_rt_sigaction, SIGUSR1, NULL, &with, 8) == 0);
        raw = with;
        raw.handler = (void *)enter;
        CHECK(syscall(SYS_rt_sigaction, signo, &raw, NULL, 8) == 0);
        unsigned long one = 1ul << (signo - 1), before;
        CHECK(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &one, &before, 8) == 0);
        CHECK(syscall(SYS_tgkill, getpid(), getpid(), signo) == 0);
        CHECK(syscall(SYS_tgkill, getpid(), getpid(), signo) == 0);
        unsigned long waiting;
        CHECK(syscall(SYS_rt_sigpending, &waiting, 8) == 0);
        printf("%d waits %d\n", signo, (int)(waiting >> (signo - 1) & 1));
        CHECK(syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &one, NULL, 8) == 0);
        show("hidden");
    }
    return 0;
}
