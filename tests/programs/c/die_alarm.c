// flags: -O1
// A timer with the default action, in a compute loop: SIGALRM.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    ualarm(20000, 0);
    for (volatile unsigned long i = 0;; i++)
        ;
    printf("after\n");
    return 0;
}
