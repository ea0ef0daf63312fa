// flags: -O1
// An undefined instruction without a handler: death by SIGILL.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    asm volatile("ud2");
    printf("after\n");
    return 0;
}
