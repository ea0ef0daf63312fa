// flags: -O1
// A read past the end of a mapped file: death by SIGBUS.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    printf("before\n");
    fflush(stdout);
    FILE *file = tmpfile();
    char *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fileno(file), 0);
    return *(volatile char *)at;
    printf("after\n");
    return 0;
}
