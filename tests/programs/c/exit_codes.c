// flags: -O1
// atexit handlers, destructors and flushing run in order; the low 8 bits of the status count.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void first(void) { printf("first registered\n"); }
static void second(void) {
    printf("second registered\n");
    atexit(first);
}

__attribute__((destructor)) static void at_end(void) { printf("destructor\n"); }
__attribute__((constructor)) static void at_start(void) { printf("constructor\n"); }

int main(void) {
    atexit(second);
    printf("main");
    fprintf(stderr, "to stderr\n");
    return 0x1234 + 0x2a;
}
