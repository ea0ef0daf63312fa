// flags: -O1 -pthread
// A thread ends the process while the others compute, wait, read, sleep and start threads.
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile unsigned long counter;
static sem_t never;
static int ends[2];
static pthread_barrier_t ready;

static void *computes(void *argument) {
    (void)argument;
    pthread_barrier_wait(&ready);
    for (;;)
        counter++;
    return NULL;
}
static void *waits(void *argument) {
    (void)argument;
    pthread_barrier_wait(&ready);
    sem_wait(&never);
    return NULL;
}
static void *reads(void *argument) {
    char byte;
    (void)argument;
    pthread_barrier_wait(&ready);
    return (void *)read(ends[0], &byte, 1);
}
static void *sleeps(void *argument) {
    (void)argument;
    pthread_barrier_wait(&ready);
    sleep(1000);
    return NULL;
}
static void *nothing(void *argument) { return argument; }
static void *creates(void *argument) {
    (void)argument;
    pthread_barrier_wait(&ready);
    for (;;) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, nothing, NULL) == 0)
            pthread_join(thread, NULL);
    }
    return NULL;
}
static void *ends_all(void *argument) {
    (void)argument;
    pthread_barrier_wait(&ready);
    while (counter < 100000) {
    }
    printf("enough\n");
    exit(23);
}

int main(void) {
    void *(*const bodies[])(void *) = {computes, waits, reads, sleeps, creates, ends_all};
    enum { COUNT = sizeof bodies / sizeof *bodies };
    pthread_t threads[COUNT];
    sem_init(&never, 0, 0);
    if (pipe(ends) != 0)
        return 1;
    pthread_barrier_init(&ready, NULL, COUNT);
    for (int i = 0; i < COUNT; i++)
        pthread_create(&threads[i], NULL, bodies[i], NULL);
    for (int i = 0; i < COUNT; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
