// flags: -O1
// A filter that kills: the status tells by what.
#include "seccomp.h"

int main(void) {
    no_new_privileges();
    answer(SYS_getppid, SECCOMP_RET_KILL_THREAD | 17);
    printf("alive %d\n", syscall(SYS_getpid) > 0);
    fflush(stdout);
    syscall(SYS_getppid);
    printf("still alive\n");
    return 0;
}
