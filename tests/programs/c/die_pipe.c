// flags: -O1
// SIGPIPE by a write to a closed pipe.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    int ends[2];
    signal(SIGPIPE, SIG_DFL);
    if (pipe(ends) == 0) {
        close(ends[0]);
        return (int)write(ends[1], "x", 1);
    }
    printf("after\n");
    return 0;
}
