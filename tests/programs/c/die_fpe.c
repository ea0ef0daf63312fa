// flags: -O1
// A division by zero without a handler: death by SIGFPE.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    asm volatile("xor %%ecx,%%ecx; div %%ecx" ::: "rax", "rcx", "rdx");
    printf("after\n");
    return 0;
}
