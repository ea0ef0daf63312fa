// flags: -O1
// fork and clone: what a child shares, inherits and doesn't, how it ends and who hears of it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t children_heard;
static volatile int shared_with_nobody = 1;

static void on_child(int signo, siginfo_t *info, void *context) {
    (void)signo, (void)context;
    children_heard++;
    if (info->si_code != CLD_EXITED && info->si_code != CLD_KILLED && info->si_code != CLD_DUMPED)
        children_heard += 1000;
}

static void on_usr1(int signo) { (void)signo; }

static void say(const char *text) {
    printf("%s\n", text);
    fflush(stdout);
}

static void ended(const char *what, pid_t pid) {
    int status = 0;
    struct rusage usage;
    pid_t got = wait4(pid, &status, 0, &usage);
    printf("%s: mine %d ", what, got == pid);
    if (WIFEXITED(status)) printf("exited %d", WEXITSTATUS(status));
    if (WIFSIGNALED(status)) printf("killed %d", WTERMSIG(status));
    printf(" usage %d\n", usage.ru_stime.tv_sec < 1000);
    fflush(stdout);
}

// A function that each process rewrites for itself.
static uint8_t *code;
static int call_code(void) { return ((int (*)(void))code)(); }

int main(void) {
    struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGCHLD, &action, NULL);

    pid_t parent = getpid(), pid = fork();
    if (pid == 0) _exit(getppid() == parent && getpid() != parent ? 7 : 1);
    ended("plain", pid);

    pid = fork();
    if (pid == 0) {
        shared_with_nobody = 2;
        _exit(shared_with_nobody);
    }
    ended("memory", pid);
    printf("parent still has %d\n", shared_with_nobody);

    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const uint8_t returns[] = {0xb8, 1, 0, 0, 0, 0xc3};
    memcpy(code, returns, sizeof returns);
    int sum = 0;
    for (int i = 0; i < 100; i++) sum += call_code();
    pid = fork();
    if (pid == 0) {
        code[1] = 5;
        for (int i = 0; i < 100; i++) sum += call_code();
        _exit(sum == 600 ? 3 : 4);
    }
    code[1] = 2;
    for (int i = 0; i < 100; i++) sum += call_code();
    ended("rewritten code", pid);
    printf("sum in the parent %d\n", sum);

    pid = fork();
    if (pid == 0) {
        raise(SIGTERM);
        _exit(9);
    }
    ended("by a signal of its own", pid);
    pid = fork();
    if (pid == 0) {
        *(volatile int *)16 = 1;
        _exit(9);
    }
    ended("by a fault", pid);
    pid = fork();
    if (pid == 0)
        for (;;) pause();
    kill(pid, SIGKILL);
    ended("by its parent", pid);
    pid = fork();
    if (pid == 0) {
        volatile unsigned long counter = 0;
        for (;;) counter++;
    }
    usleep(20000);
    kill(pid, SIGTERM);
    ended("in a loop by its parent", pid);
    printf("children heard of %d\n", (int)children_heard);

    // Stopped and continued, seen by waitpid and waitid.
    pid = fork();
    if (pid == 0)
        for (;;) pause();
    int status;
    kill(pid, SIGSTOP);
    waitpid(pid, &status, WUNTRACED);
    printf("stopped %d by %d\n", WIFSTOPPED(status), WSTOPSIG(status));
    kill(pid, SIGCONT);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    waitid(P_PID, pid, &info, WCONTINUED);
    printf("continued %d\n", info.si_code == CLD_CONTINUED);
    kill(pid, SIGUSR2);
    memset(&info, 0, sizeof info);
    waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
    printf("killed %d %d\n", info.si_code == CLD_KILLED, info.si_status);
    ended("after it was looked at", pid);

    // What isn't inherited: pending signals and timers. What is: mask, handlers, ignored ones.
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGSEGV);
    sigprocmask(SIG_BLOCK, &set, &old);
    signal(SIGUSR1, on_usr1);
    signal(SIGHUP, SIG_IGN);
    raise(SIGUSR1);
    raise(SIGSEGV);
    alarm(100);
    pid = fork();
    if (pid == 0) {
        sigset_t pending, mask;
        sigpending(&pending);
        sigprocmask(SIG_BLOCK, NULL, &mask);
        struct sigaction usr1, hup;
        sigaction(SIGUSR1, NULL, &usr1);
        sigaction(SIGHUP, NULL, &hup);
        printf("pending %d %d blocked %d %d handler %d ignored %d alarm %d\n",
               sigismember(&pending, SIGUSR1), sigismember(&pending, SIGSEGV),
               sigismember(&mask, SIGUSR1), sigismember(&mask, SIGSEGV),
               usr1.sa_handler == on_usr1, hup.sa_handler == SIG_IGN, alarm(0));
        fflush(stdout);
        _exit(0);
    }
    ended("signals", pid);
    alarm(0);
    signal(SIGSEGV, SIG_IGN);
    sigprocmask(SIG_SETMASK, &old, NULL);
    signal(SIGSEGV, SIG_DFL);

    // clone: a stack of its own, ids written and cleared, no exit signal, a descriptor.
    static char stack[65536] __attribute__((aligned(16)));
    static int parent_tid, child_tid;
    pid = syscall(SYS_clone, CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, 0, &parent_tid, &child_tid, 0);
    if (pid == 0) _exit(child_tid == getpid() && parent_tid == getpid() ? 5 : 6);
    printf("parent has %d %d\n", parent_tid == pid, child_tid);
    ended("ids", pid);
    struct clone_args args = {.flags = CLONE_PIDFD | CLONE_CLEAR_SIGHAND, .exit_signal = SIGCHLD};
    int pidfd = -1;
    args.pidfd = (uintptr_t)&pidfd;
    pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) {
        struct sigaction usr1, hup;
        sigaction(SIGUSR1, NULL, &usr1);
        sigaction(SIGHUP, NULL, &hup);
        _exit(usr1.sa_handler == SIG_DFL && hup.sa_handler == SIG_IGN ? 8 : 9);
    }
    printf("a descriptor %d\n", pidfd >= 0 && fcntl(pidfd, F_GETFD) == FD_CLOEXEC);
    memset(&info, 0, sizeof info);
    waitid(P_PIDFD, pidfd, &info, WEXITED);
    printf("by descriptor %d %d\n", info.si_pid == pid, info.si_status);
    close(pidfd);
    int heard = children_heard;
    pid = syscall(SYS_clone, 0, 0, 0, 0, 0);
    if (pid == 0) _exit(4);
    int without = waitpid(pid, &status, 0);
    int with = waitpid(pid, &status, __WALL);
    printf("without an exit signal %d %d, heard %d\n", without == -1, with == pid, children_heard - heard);
    args = (struct clone_args){.flags = 0, .exit_signal = SIGCHLD, .stack = (uintptr_t)stack, .stack_size = sizeof stack};
    // The child is on the other stack: nothing but registers may be used.
    long result;
    register long number asm("rax") = SYS_clone3;
    asm volatile("syscall\n\t"
                 "test %%rax, %%rax\n\t"
                 "jnz 1f\n\t"
                 "mov %%rsp, %%rdi\n\t"
                 "sub %3, %%rdi\n\t"
                 "shr $12, %%rdi\n\t"
                 "mov $60, %%eax\n\t"
                 "syscall\n"
                 "1:"
                 : "=a"(result)
                 : "r"(number), "D"(&args), "r"((long)stack), "S"(sizeof args)
                 : "rcx", "r11", "memory");
    ended("on another stack", result);
    errno = 0;
    printf("invalid %ld", syscall(SYS_clone, CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0));
    printf(" %s\n", strerrorname_np(errno));

    // A grandchild whose parent is gone comes to the subreaper.
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    int ends[2];
    if (pipe(ends)) return 9;
    pid = fork();
    if (pid == 0) {
        if (fork() == 0) {
            setsid();
            while (getppid() != parent) usleep(1000);
            if (write(ends[1], "daemon", 6) != 6) _exit(1);
            _exit(12);
        }
        _exit(11);
    }
    ended("the one between", pid);
    close(ends[1]);
    char text[16] = "";
    ssize_t len = 0, more;
    while ((more = read(ends[0], text + len, sizeof text - len)) > 0) len += more;
    int orphan = wait(&status);
    printf("orphan %d says %s and exits %d\n", orphan > 0 && orphan != pid, text, WEXITSTATUS(status));
    int none = wait(&status);
    printf("no more: %d %s\n", none, strerrorname_np(errno));

    // Buffered output is duplicated, as always.
    printf("twice\n");
    pid = fork();
    if (pid == 0) exit(0);
    ended("flushed twice when it is a file", pid);
    say("end");
    return 0;
}
