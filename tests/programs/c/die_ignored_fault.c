// flags: -O1
// A fault whose signal is ignored kills all the same.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    signal(SIGFPE, SIG_IGN);
    raise(SIGFPE);
    printf("ignored when sent\n");
    fflush(stdout);
    asm volatile("xor %%ecx,%%ecx; div %%ecx" ::: "rax", "rcx", "rdx");
    printf("after\n");
    return 0;
}
