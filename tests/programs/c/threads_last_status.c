// flags: -O1 -pthread
// exit(2) of single threads: the process's status is that of the one that ends last.
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void *later(void *argument) {
    (void)argument;
    struct timespec pause = {0, 50000000};
    nanosleep(&pause, NULL);
    syscall(SYS_exit, 5);
    return NULL;
}

int main(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, later, NULL);
    syscall(SYS_exit, 3);
}
