// flags: -O1
// A signal sent to oneself with the default action: SIGTERM.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    raise(SIGTERM);
    printf("after\n");
    return 0;
}
