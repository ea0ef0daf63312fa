// flags: -O1
// Filters outlive fork, vfork and execve; children that are killed by one say so.
#include "seccomp.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static void outcome(const char *what, pid_t pid) {
    int status = 0;
    if (waitpid(pid, &status, 0) != pid)
        perror("waitpid");
    printf("%s: status %x\n", what, status);
}

static int again(void) {
    errno = 0;
    long result = syscall(SYS_getpgrp);
    printf("after exec: %ld %s, mode %d, no new privileges %d\n", result, strerror(errno),
           prctl(PR_GET_SECCOMP, 0, 0, 0, 0), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    fflush(stdout);
    syscall(SYS_getuid);
    return 9;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IONBF, 0);
    if (argc > 1)
        return again();
    unsigned actions[] = {SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_TRAP,
                          SECCOMP_RET_ERRNO | 3};
    for (int i = 0; i < 4; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            no_new_privileges();
            answer(SYS_getuid, actions[i]);
            syscall(SYS_getuid);
            _exit(7);
        }
        outcome("action", pid);
    }
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0);
        syscall(SYS_getuid);
        syscall(SYS_exit, 7);
    }
    outcome("strict", pid);

    no_new_privileges();
    answer(SYS_getpgrp, SECCOMP_RET_ERRNO | ENOTNAM);
    pid = fork();
    if (pid == 0) {
        printf("child: %ld\n", syscall(SYS_getpgrp));
        // Its own filters stay its own.
        answer(SYS_getuid, SECCOMP_RET_KILL_PROCESS);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            syscall(SYS_getuid);
            _exit(0);
        }
        outcome("grandchild", grandchild);
        execl(argv[0], argv[0], "again", NULL);
        _exit(1);
    }
    outcome("exec", pid);
    char *arguments[] = {argv[0], "again", NULL};
    if (posix_spawn(&pid, argv[0], NULL, NULL, arguments, environ))
        printf("no spawn\n");
    else
        outcome("spawn", pid);
    printf("parent: %d\n", getuid() == geteuid());
    return 0;
}
