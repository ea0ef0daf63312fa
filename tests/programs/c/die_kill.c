// flags: -O1
// SIGKILL sent to oneself.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    kill(getpid(), SIGKILL);
    printf("after\n");
    return 0;
}
