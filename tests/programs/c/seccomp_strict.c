// flags: -O1
// Strict mode: read, write and exit go on; anything else kills by SIGKILL.
#include "seccomp.h"

int main(int argc, char **argv) {
    (void)argv;
    char byte;
    int ends[2];
    pipe(ends);
    write(ends[1], "x", 1);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0);
    for (int i = 0; i < 100; i++)
        write(1, ".", 1);
    if (read(ends[0], &byte, 1) == 1)
        write(1, &byte, 1);
    write(1, "\n", 1);
    if (argc > 1)
        syscall(SYS_exit, 3);
    syscall(SYS_getpid);
    write(1, "alive\n", 6);
    return 0;
}
