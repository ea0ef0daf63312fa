// flags: -O1 -pthread
// heavy
// Children of vfork that are killed at any moment, while other threads go on: nobody waits
// for what such a child had in its hands.
#define _GNU_SOURCE
#include "fault.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static atomic_int child_id, over;
static atomic_long work_done;

// Kills each child a little later than the one before it.
static void *killer(void *unused) {
    (void)unused;
    for (long round = 0; !over; round++) {
        pid_t victim;
        while ((victim = atomic_exchange(&child_id, 0)) == 0) {
            if (over)
                return NULL;
            usleep(20);
        }
        struct timespec pause = {0, round * 7919 % 300000};
        nanosleep(&pause, NULL);
        CHECK(kill(victim, SIGKILL) == 0);
    }
    return NULL;
}

static void *worker(void *unused) {
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    while (!over) {
        pthread_sigmask(SIG_BLOCK, &set, NULL);
        work_done++;
    }
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, i ? worker : killer, NULL) == 0);
    int killed = 0, rounds = 100;
    for (int i = 0; i < rounds; i++) {
        pid_t child = vfork();
        if (child == 0) {
            uint64_t set = 0;
            // What it runs from here on needs no more memory of whoever runs it.
            for (int warm = 0; warm < 3000; warm++)
                syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, 8);
            child_id = syscall(SYS_getpid);
            for (;;)
                syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, 8);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    }
    over = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    printf("%d of %d killed, others worked %d\n", killed, rounds, work_done > 0);
    return 0;
}
