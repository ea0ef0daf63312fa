// flags: -O1
// heavy
// vfork and posix_spawn: memory that is shared while the parent waits, errors that come back.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static volatile int seen;

static void ended(const char *what, pid_t pid) {
    int status = 0;
    pid_t got = waitpid(pid, &status, 0);
    printf("%s: mine %d ", what, got == pid);
    if (WIFEXITED(status)) printf("exited %d\n", WEXITSTATUS(status));
    if (WIFSIGNALED(status)) printf("killed %d\n", WTERMSIG(status));
    fflush(stdout);
}

static void spawn(const char *what, const char *path, char **args, const posix_spawn_file_actions_t *actions,
                  const posix_spawnattr_t *attributes) {
    pid_t pid = -7;
    fflush(stdout);
    int error = posix_spawn(&pid, path, actions, attributes, args, environ);
    if (error)
        printf("%s: %s\n", what, strerrorname_np(error));
    else
        ended(what, pid);
}

static void handler(int signo) { (void)signo; }

int main(int argc, char **argv) {
    if (argc > 1) {
        sigset_t mask;
        sigprocmask(SIG_BLOCK, NULL, &mask);
        struct sigaction hup, usr1;
        sigaction(SIGHUP, NULL, &hup);
        sigaction(SIGUSR1, NULL, &usr1);
        printf("child: own group %d, blocked %d %d, hangup %s, usr1 %s, %s\n", getpgid(0) == getpid(),
               sigismember(&mask, SIGUSR1), sigismember(&mask, SIGUSR2),
               hup.sa_handler == SIG_IGN ? "ignored" : "default", usr1.sa_handler == SIG_DFL ? "default" : "kept",
               argv[1]);
        fflush(stdout);
        return 3;
    }
    // vfork: the child's writes are seen, and the parent has waited.
    pid_t pid = vfork();
    if (pid == 0) {
        seen = 1;
        for (volatile int i = 0; i < 2000; i++) seen += i & 1;
        _exit(21);
    }
    printf("seen %d\n", seen);
    ended("vfork", pid);

    pid = vfork();
    if (pid == 0) {
        execl("/nonexistent", "x", (char *)NULL);
        seen = errno;
        _exit(22);
    }
    printf("its error %s\n", strerrorname_np(seen));
    ended("failed exec", pid);

    pid = vfork();
    if (pid == 0) {
        execl("/proc/self/exe", "again", "by vfork", (char *)NULL);
        _exit(23);
    }
    ended("exec", pid);

    pid = vfork();
    if (pid == 0) {
        raise(SIGTERM);
        _exit(24);
    }
    ended("killed", pid);
    pid = vfork();
    if (pid == 0) {
        *(volatile int *)16 = 1;
        _exit(24);
    }
    ended("faulted", pid);

    // A child's changes of handlers, descriptors and folder are its own.
    signal(SIGUSR1, handler);
    pid = vfork();
    if (pid == 0) {
        signal(SIGUSR1, SIG_IGN);
        close(0);
        if (chdir("/")) _exit(1);
        // And vfork within vfork.
        pid_t inner = vfork();
        if (inner == 0) _exit(31);
        int status;
        waitpid(inner, &status, 0);
        _exit(WEXITSTATUS(status) + 1);
    }
    struct sigaction usr1;
    sigaction(SIGUSR1, NULL, &usr1);
    char folder[4096];
    printf("handler kept %d, descriptor kept %d, folder kept %d\n", usr1.sa_handler == handler,
           fcntl(0, F_GETFD) >= 0, strcmp(getcwd(folder, sizeof folder), "/") != 0);
    ended("nested", pid);

    // fork within vfork has a copy, and ends before its parent's parent goes on.
    seen = 0;
    pid = vfork();
    if (pid == 0) {
        pid_t inner = fork();
        if (inner == 0) {
            seen = 99;
            _exit(41);
        }
        int status;
        waitpid(inner, &status, 0);
        seen += 2;
        _exit(WEXITSTATUS(status));
    }
    printf("seen %d\n", seen);
    ended("fork in vfork", pid);

    char *args[] = {"spawned", "plainly", NULL};
    char *none[] = {"x", NULL};
    spawn("works", "/proc/self/exe", args, NULL, NULL);
    spawn("missing", "/nonexistent", none, NULL, NULL);
    spawn("a folder", "/", none, NULL, NULL);
    spawn("not executable", "text", none, NULL, NULL);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "output", O_WRONLY | O_CREAT | O_APPEND, 0644);
    args[1] = "into a file";
    spawn("redirected", "/proc/self/exe", args, &actions, NULL);
    posix_spawn_file_actions_addopen(&actions, 2, "none/there", O_WRONLY, 0);
    spawn("bad redirection", "/proc/self/exe", args, &actions, NULL);
    posix_spawn_file_actions_destroy(&actions);

    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    posix_spawnattr_setsigmask(&attributes, &set);
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    posix_spawnattr_setsigdefault(&attributes, &set);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    signal(SIGHUP, SIG_IGN);
    args[1] = "with attributes";
    spawn("attributes", "/proc/self/exe", args, NULL, &attributes);
    args[1] = "ignoring";
    spawn("inherited", "/proc/self/exe", args, NULL, NULL);

    pid = 0;
    args[1] = "along the path";
    int error = posix_spawnp(&pid, "no-such-program", NULL, NULL, args, environ);
    printf("along the path: %s\n", strerrorname_np(error));
    printf("system: %d\n", WEXITSTATUS(system("exit 17")));
    fflush(stdout);
    FILE *stream = popen("echo from a pipe; exit 4", "r");
    char line[64] = "";
    if (!fgets(line, sizeof line, stream)) return 9;
    printf("%s%d\n", line, WEXITSTATUS(pclose(stream)));
    printf("left over: %d\n", waitpid(-1, NULL, 0));
    return 0;
}
