// flags: -O1
// A breakpoint without a handler: death by SIGTRAP.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    asm volatile("int3");
    printf("after\n");
    return 0;
}
