// flags: -O1 -pthread
// A thread's fault kills the process, whatever the others do.
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static volatile int *nowhere;
static volatile long counter;

static void *spins(void *argument) {
    (void)argument;
    for (;;)
        counter++;
    return NULL;
}
static void *faults(void *argument) {
    (void)argument;
    while (counter < 10000) {
    }
    return (void *)(long)*nowhere;
}

int main(void) {
    pthread_t a, b;
    printf("before\n");
    fflush(stdout);
    pthread_create(&a, NULL, spins, NULL);
    pthread_create(&b, NULL, faults, NULL);
    for (;;)
        pause();
}
