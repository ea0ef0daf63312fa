// flags: -O1
// abort(): death by SIGABRT, past a handler that returns.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    abort();
    printf("after\n");
    return 0;
}
