// flags: -O1
// A fault in the handler of the same signal kills.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

static void again(int signo) { *(volatile int *)16 = signo; }

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    signal(SIGSEGV, again);
    *(volatile int *)16 = 1;
    printf("after\n");
    return 0;
}
