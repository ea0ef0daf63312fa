// flags: -O1 -pthread
// The first thread ends before the others; the process lives on and exits with 0.
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static pthread_t first;

static void *last(void *argument) {
    void *result;
    int joined = pthread_join(first, &result);
    printf("joined the first thread: %d %ld\n", joined, (long)result);
    struct timespec pause = {0, 30000000};
    nanosleep(&pause, NULL);
    printf("still here: %s\n", (char *)argument);
    fflush(stdout);
    return NULL;
}

int main(void) {
    pthread_t thread;
    first = pthread_self();
    pthread_create(&thread, NULL, last, "argument");
    pthread_exit((void *)42);
}
