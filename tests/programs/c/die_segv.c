// flags: -O1
// A fault without a handler: death by SIGSEGV.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    *(volatile int *)16 = 1;
    printf("after\n");
    return 0;
}
