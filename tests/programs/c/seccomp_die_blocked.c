// flags: -O1
// SECCOMP_RET_TRAP with SIGSYS blocked kills, although there is a handler.
#include "seccomp.h"

static void on_sys(int signo) {
    (void)signo;
    write(1, "handler\n", 8);
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSYS);
    signal(SIGSYS, on_sys);
    no_new_privileges();
    answer(SYS_getppid, SECCOMP_RET_TRAP);
    syscall(SYS_getppid);
    sigprocmask(SIG_BLOCK, &set, NULL);
    syscall(SYS_getppid);
    write(1, "still alive\n", 12);
    return 0;
}
