// flags: -O1
// A raw exit_group: nothing is flushed, the status is what was given.
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
    printf("lost when stdout is no terminal");
    syscall(SYS_exit_group, 200);
    return 1;
}
