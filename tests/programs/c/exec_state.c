// flags: -O1
// heavy
// What execve keeps and what it resets, through a chain of the ways to name a program.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static int faults_heard;
static void on_signal(int signo, siginfo_t *info, void *context) {
    (void)context;
    // One that a fault could raise comes first or last, as the kernel likes.
    if (signo == SIGSEGV) {
        faults_heard++;
        return;
    }
    printf("handler: %d value %d\n", signo, info->si_value.sival_int);
    fflush(stdout);
}

static void show_file(const char *path) {
    char bytes[4096];
    int fd = open(path, O_RDONLY);
    ssize_t len = read(fd, bytes, sizeof bytes);
    close(fd);
    printf("%s:", path);
    for (ssize_t i = 0; i < len; i++)
        putchar(bytes[i] ? (bytes[i] == '\n' ? ' ' : bytes[i]) : '|');
    putchar('\n');
}

static void show(int step, int argc, char **argv) {
    printf("argc %d:", argc);
    for (int i = 0; i < argc; i++) printf(" [%s]", argv[i]);
    printf("\nexecuted as %s\n", (char *)getauxval(AT_EXECFN));
    show_file("/proc/self/cmdline");
    show_file("/proc/self/comm");
    if (step > 0) {
        printf("environment:");
        for (char **e = environ; *e; e++) printf(" [%s]", *e);
        printf("\n");
        show_file("/proc/self/environ");
    }
    char name[16], link[4096], cwd[4096];
    prctl(PR_GET_NAME, name);
    ssize_t len = readlink("/proc/self/exe", link, sizeof link - 1);
    link[len > 0 ? len : 0] = 0;
    char *base = strrchr(getcwd(cwd, sizeof cwd), '/');
    printf("name %s, exe %s, cwd %s, secure %ld\n", name, link, step > 0 ? base : "", (long)getauxval(AT_SECURE));

    sigset_t set, pending;
    sigprocmask(SIG_BLOCK, NULL, &set);
    sigpending(&pending);
    for (int signo = 1; signo <= 64; signo++) {
        struct sigaction action;
        if (syscall(SYS_rt_sigaction, signo, NULL, NULL, 8) < 0 || signo == 32 || signo == 33) continue;
        sigaction(signo, NULL, &action);
        int blocked = sigismember(&set, signo), waits = sigismember(&pending, signo);
        if (blocked || waits || action.sa_handler != SIG_DFL)
            printf("signal %d: blocked %d pending %d %s\n", signo, blocked, waits,
                   action.sa_handler == SIG_IGN ? "ignored" : action.sa_handler == SIG_DFL ? "default" : "HANDLED");
    }
    stack_t stack;
    sigaltstack(NULL, &stack);
    printf("alternate stack %s\n", stack.ss_flags & SS_DISABLE ? "off" : "ON");

    struct itimerval timer;
    getitimer(ITIMER_REAL, &timer);
    printf("alarm runs %d\n", timer.it_value.tv_sec > 0 && timer.it_value.tv_sec <= 1000);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    mode_t mask = umask(0);
    umask(mask);
    printf("files %ld umask %o persona %x\n", (long)limit.rlim_cur, mask, personality(0xffffffff));
    getrlimit(RLIMIT_AS, &limit);
    printf("address space %ld\n", (long)limit.rlim_cur);
    printf("open:");
    for (int fd = 0; fd < 1100; fd++)
        if (fcntl(fd, F_GETFD) >= 0) printf(" %d", fd);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    int step = argc > 1 ? atoi(argv[1]) : 0;
    show(step, argc, argv);
    int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    switch (step) {
    case 0: {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR2, &action, NULL);
        sigaction(SIGSEGV, &action, NULL);
        signal(SIGHUP, SIG_IGN);
        signal(SIGFPE, SIG_IGN);
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        sigaddset(&set, SIGRTMIN);
        sigaddset(&set, SIGSEGV);
        sigaddset(&set, SIGTRAP);
        sigprocmask(SIG_SETMASK, &set, NULL);
        raise(SIGUSR1);
        raise(SIGSEGV);
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 7});
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 8});
        static char memory[65536];
        stack_t stack = {.ss_sp = memory, .ss_size = sizeof memory};
        sigaltstack(&stack, NULL);
        alarm(1000);
        umask(037);
        struct rlimit limit = {100, 4096};
        setrlimit(RLIMIT_NOFILE, &limit);
        struct rlimit space = {3l << 30, 4l << 30};
        setrlimit(RLIMIT_AS, &space);
        personality(ADDR_NO_RANDOMIZE);
        open("text", O_RDONLY);
        open("text", O_RDONLY | O_CLOEXEC);
        if (chdir("tree")) return 9;
        char *args[] = {"", "1", "", "last \xff", NULL};
        char *env[] = {"A=1", "", "odd", "A=2", "=x", NULL};
        execve("/proc/self/exe", args, env);
        break;
    }
    case 1: {
        char *args[] = {"by descriptor", "2", NULL};
        fexecve(self, args, environ);
        break;
    }
    case 2: {
        // Relative, after a change of folder.
        char path[4096];
        ssize_t len = readlink("/proc/self/exe", path, sizeof path - 1);
        path[len] = 0;
        char *base = strrchr(path, '/');
        *base = 0;
        int folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (chdir(path)) return 9;
        char relative[4096] = "./";
        strcat(relative, base + 1);
        char *args[] = {"relative", "3", NULL};
        (void)folder;
        execve(relative, args, environ);
        break;
    }
    case 3: {
        char path[4096];
        ssize_t len = readlink("/proc/self/exe", path, sizeof path - 1);
        path[len] = 0;
        char *base = strrchr(path, '/');
        *base = 0;
        int folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        char *args[] = {"below a descriptor", "4", NULL};
        syscall(SYS_execveat, folder, base + 1, args, environ, 0);
        break;
    }
    case 4: {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR1, &action, NULL);
        sigaction(SIGRTMIN, &action, NULL);
        sigaction(SIGSEGV, &action, NULL);
        sigset_t set;
        sigemptyset(&set);
        sigprocmask(SIG_SETMASK, &set, NULL);
        printf("end, %d\n", faults_heard);
        return 5;
    }
    }
    printf("not executed: %s\n", strerrorname_np(errno));
    return 1;
}
