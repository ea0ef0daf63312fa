// flags: -O1
// heavy
// Children that signals stop, continue and kill, as their parent sees it: the status of each
// default action with and without core files, SIGCHLD and its flags, stops and job control
// signals, signals to groups and by descriptor, what fork hands on.
#include "fault.h"
#include <dirent.h>
#include <errno.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static volatile int handled, chld_code, chld_status;
static volatile pid_t chld_pid;

static void handler(int signo, siginfo_t *info, void *uc) {
    (void)uc;
    handled++;
    if (signo == SIGCHLD)
        chld_code = info->si_code, chld_status = info->si_status, chld_pid = info->si_pid;
}

static void nothing(int signo, siginfo_t *info, void *uc) { (void)signo, (void)info, (void)uc; }

static void tell(const char *what, int status) {
    printf("%s: ", what);
    if (WIFEXITED(status))
        printf("exit %d\n", WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        printf("killed by %d%s\n", WTERMSIG(status), WCOREDUMP(status) ? " with a core" : "");
    else if (WIFSTOPPED(status))
        printf("stopped by %d\n", WSTOPSIG(status));
    else if (WIFCONTINUED(status))
        printf("continued\n");
}

static int wait_for(pid_t child, int options) {
    int status;
    pid_t got;
    do
        got = waitpid(child, &status, options);
    while (got == -1 && errno == EINTR);
    CHECK(got == child);
    return status;
}

static void fault(int kind) {
    volatile int zero = 0;
    switch (kind) {
    case SIGSEGV: *(volatile int *)8 = 1; break;
    case SIGFPE: asm volatile("idivl %0" : : "r"(zero), "a"(1), "d"(0)); break;
    case SIGILL: asm volatile("ud2"); break;
    case SIGTRAP: asm volatile("int3"); break;
    case SIGABRT: abort();
    }
}

static void no_files(void) {
    DIR *here = opendir(".");
    struct dirent *entry;
    while ((entry = readdir(here)))
        if (entry->d_name[0] != '.')
            unlink(entry->d_name);
    closedir(here);
}

// Each signal's default action, sent by itself.
static void deaths(void) {
    for (int signo = 1; signo <= 64; signo++) {
        if (signo == SIGSTOP || signo == SIGTSTP || signo == SIGTTIN || signo == SIGTTOU)
            continue;
        pid_t child = fork();
        if (child == 0) {
            syscall(SYS_kill, getpid(), signo);
            _exit(42);
        }
        int status = wait_for(child, 0);
        char name[32];
        snprintf(name, sizeof name, "signal %d", signo);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != signo || WCOREDUMP(status))
            tell(name, status);
    }
    int kinds[] = {SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    for (int i = 0; i < 10; i++) {
        pid_t child = fork();
        if (child == 0) {
            struct rlimit limit;
            getrlimit(RLIMIT_CORE, &limit);
            limit.rlim_cur = i < 5 ? 0 : limit.rlim_max;
            setrlimit(RLIMIT_CORE, &limit);
            if (i % 2)
                handle(kinds[i % 5], nothing, SA_RESETHAND);
            fault(kinds[i % 5]);
            _exit(43);
        }
        tell("fault", wait_for(child, 0));
        no_files();
    }
}

static void stops(void) {
    int kinds[] = {SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};
    for (int i = 0; i < 4; i++) {
        handled = 0;
        handle(SIGCHLD, handler, SA_RESTART);
        pid_t child = fork();
        if (child == 0) {
            setpgid(0, 0);
            raise(kinds[i]);
            _exit(7);
        }
        tell("child", wait_for(child, WUNTRACED));
        printf(" told %d, code %d status %d own %d\n", handled, chld_code, chld_status, chld_pid == child);
        handled = 0;
        kill(child, SIGCONT);
        tell("child", wait_for(child, 0));
        printf(" told at least once %d\n", handled > 0);
    }
    handled = 0;
    handle(SIGCHLD, handler, SA_RESTART | SA_NOCLDSTOP);
    int go[2];
    char byte;
    CHECK(pipe(go) == 0);
    pid_t child = fork();
    if (child == 0) {
        handle(SIGCONT, handler, 0);
        raise(SIGSTOP);
        CHECK(read(go[0], &byte, 1) == 1);
        _exit(handled);
    }
    tell("child", wait_for(child, WUNTRACED));
    kill(child, SIGCONT);
    // An end would hide that it went on.
    tell("child", wait_for(child, WCONTINUED));
    CHECK(write(go[1], "x", 1) == 1);
    tell("child", wait_for(child, 0));
    printf(" told %d, code %d\n", handled, chld_code);
}

static void orphans_of_waiting(void) {
    int status;
    handle(SIGCHLD, handler, SA_RESTART | SA_NOCLDWAIT);
    handled = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    CHECK(waitpid(child, &status, 0) == -1);
    printf("no zombie: errno %d, told %d\n", errno, handled);
    signal(SIGCHLD, SIG_IGN);
    child = fork();
    if (child == 0)
        _exit(0);
    CHECK(waitpid(child, &status, 0) == -1);
    printf("ignored: errno %d\n", errno);
    signal(SIGCHLD, SIG_DFL);
}

static void senders(void) {
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            if (i)
                setpgid(0, children[1]);
            for (;;)
                pause();
        }
        if (i)
            setpgid(children[i], children[1]);
    }
    kill(-children[1], SIGTERM);
    tell("in the group", wait_for(children[1], 0));
    tell("in the group", wait_for(children[2], 0));
    int pidfd = syscall(SYS_pidfd_open, children[0], 0);
    CHECK(pidfd >= 0 && syscall(SYS_pidfd_send_signal, pidfd, SIGHUP, NULL, 0) == 0);
    tell("by descriptor", wait_for(children[0], 0));
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        for (;;)
            CHECK(write(ends[1], "x", 1) == 1);
    }
    close(ends[0]), close(ends[1]);
    tell("a broken pipe", wait_for(child, 0));
    // A middle process that ends takes its child along.
    CHECK(pipe(ends) == 0);
    child = fork();
    if (child == 0) {
        pid_t grandchild = fork();
        if (grandchild == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            CHECK(write(ends[1], "x", 1) == 1);
            for (;;)
                pause();
        }
        char byte;
        CHECK(read(ends[0], &byte, 1) == 1);
        _exit(3);
    }
    close(ends[1]);
    tell("the middle", wait_for(child, 0));
    char byte;
    printf("its child is gone %d\n", read(ends[0], &byte, 1) == 0);
}

static void handed_on(void) {
    sigset_t set, pending;
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGSEGV);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1), raise(SIGSEGV);
    handle(SIGUSR1, handler, 0), handle(SIGSEGV, handler, 0);
    signal(SIGUSR2, SIG_IGN);
    static char stack[65536];
    stack_t mine = {.ss_sp = stack, .ss_size = sizeof stack}, now;
    sigaltstack(&mine, NULL);
    alarm(100);
    handled = 0;
    pid_t child = fork();
    if (child == 0) {
        sigpending(&pending);
        printf("child: pending %d %d", sigismember(&pending, SIGUSR1), sigismember(&pending, SIGSEGV));
        sigprocmask(SIG_UNBLOCK, &set, &pending);
        printf(", blocked %d, handled %d", sigismember(&pending, SIGUSR1), handled);
        raise(SIGUSR1), raise(SIGUSR2), raise(SIGSEGV);
        sigaltstack(NULL, &now);
        printf(", handled %d, stack %d, alarm %u\n", handled, now.ss_sp == stack, alarm(0));
        fflush(stdout);
        _exit(0);
    }
    wait_for(child, 0);
    sigpending(&pending);
    printf("parent: pending %d %d", sigismember(&pending, SIGUSR1), sigismember(&pending, SIGSEGV));
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    printf(", handled %d, alarm %d\n", handled, alarm(0) > 0);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    char folder[] = "/tmp/cores-XXXXXX";
    CHECK(mkdtemp(folder) && chdir(folder) == 0);
    deaths();
    stops();
    orphans_of_waiting();
    senders();
    handed_on();
    no_files();
    CHECK(chdir("/") == 0 && rmdir(folder) == 0);
    return 0;
}
