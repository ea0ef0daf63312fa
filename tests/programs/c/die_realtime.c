// flags: -O1
// A real-time signal with the default action.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    raise(SIGRTMIN + 3);
    printf("after\n");
    return 0;
}
