// A tracer of the process whose number it is given; of itself without one.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 2) {
        for (int i = 0; i < 2; i++) {
            long result = ptrace(PTRACE_TRACEME, 0, 0, 0);
            printf("traceme: %ld %s\n", result, strerror(errno));
        }
        long descriptor = syscall(SYS_userfaultfd, 0);
        printf("userfaultfd: %ld %s\n", descriptor, strerror(errno));
        return 0;
    }
    pid_t pid = atoi(argv[1]);
    struct user_regs_struct regs;
    int status;
    if (ptrace(PTRACE_ATTACH, pid, 0, 0) || waitpid(pid, &status, __WALL) != pid) {
        printf("attach: %s\n", strerror(errno));
        return 1;
    }
    printf("status %x\n", status);
    printf("registers %ld\n", ptrace(PTRACE_GETREGS, pid, 0, &regs));
    errno = 0;
    ptrace(PTRACE_PEEKDATA, pid, regs.rsp, 0);
    printf("rip %s, stack readable %d\n", regs.rip ? "there" : "zero", errno == 0);
    printf("detach %ld\n", ptrace(PTRACE_DETACH, pid, 0, 0));
    return 0;
}
