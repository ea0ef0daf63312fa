// flags: -O1 -pthread
// Robust mutexes whose owner ends: the next one is told, whether it waited or came later.
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { COUNT = 5 };
static pthread_mutex_t mutexes[COUNT];
static pthread_barrier_t locked;

static void *owner(void *argument) {
    (void)argument;
    for (int i = 0; i < COUNT; i++)
        pthread_mutex_lock(&mutexes[i]);
    pthread_mutex_unlock(&mutexes[2]);
    pthread_barrier_wait(&locked);
    struct timespec pause = {0, 30000000};
    nanosleep(&pause, NULL);
    return NULL;
}

static void *waiter(void *argument) {
    (void)argument;
    int result = pthread_mutex_lock(&mutexes[0]);
    if (result == EOWNERDEAD)
        pthread_mutex_consistent(&mutexes[0]);
    pthread_mutex_unlock(&mutexes[0]);
    return (void *)(long)result;
}

int main(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    for (int i = 0; i < COUNT; i++) {
        if (i == 3)
            pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
        pthread_mutex_init(&mutexes[i], &attributes);
    }
    pthread_barrier_init(&locked, NULL, 2);
    pthread_t dies, waits;
    pthread_create(&dies, NULL, owner, NULL);
    pthread_barrier_wait(&locked);
    pthread_create(&waits, NULL, waiter, NULL);
    void *result;
    pthread_join(waits, &result);
    printf("waited: %s\n", strerror((int)(long)result));
    pthread_join(dies, NULL);
    for (int i = 0; i < COUNT; i++) {
        int got = pthread_mutex_lock(&mutexes[i]);
        printf("%d: %s\n", i, strerror(got));
        if (got == EOWNERDEAD && i != 1)
            pthread_mutex_consistent(&mutexes[i]);
        if (got == 0 || got == EOWNERDEAD)
            pthread_mutex_unlock(&mutexes[i]);
    }
    printf("not made consistent: %s\n", strerror(pthread_mutex_lock(&mutexes[1])));
    return 0;
}
