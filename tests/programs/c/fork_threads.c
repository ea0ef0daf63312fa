// flags: -O2 -pthread
// heavy
// fork, vfork, posix_spawn and exec in a program whose other threads are busy all the while.
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static atomic_int stop;
static atomic_long rounds;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned work(unsigned seed, int count) {
    for (int i = 0; i < count; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        if (seed % 7 == 0) seed += i;
    }
    return seed;
}

static void *busy(void *argument) {
    unsigned seed = (unsigned)(long)argument + 1;
    while (!stop) {
        seed = work(seed, 500);
        pthread_mutex_lock(&lock);
        char *text = malloc(seed % 500 + 1);
        text[0] = (char)seed;
        free(text);
        pthread_mutex_unlock(&lock);
        if (getppid() == 0) abort();
        rounds++;
    }
    return NULL;
}

static int status_of(pid_t pid) {
    int status = -1;
    if (waitpid(pid, &status, 0) != pid) return -2;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void *forks(void *argument) {
    long sum = 0, id = (long)argument;
    for (int i = 0; i < 15; i++) {
        pid_t pid = fork();
        if (pid == 0) _exit(work(i + id, 1000) & 31);
        sum += status_of(pid);
        pid = vfork();
        if (pid == 0) _exit(i);
        sum += status_of(pid);
        if (i % 5 == 0) {
            char *args[] = {"again", "x", NULL};
            if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, args, environ)) return (void *)-1;
            sum += status_of(pid);
        }
    }
    return (void *)sum;
}

static void *in_child(void *argument) { return (void *)((long)argument * 2); }

static void *executes(void *argument) {
    char *args[] = {"again", "from a thread", NULL};
    execve("/proc/self/exe", args, environ);
    return argument;
}

int main(int argc, char **argv) {
    if (argc > 1) {
        if (argv[1][0] == 'f') printf("executed %s\n", argv[1]);
        return 9;
    }
    pthread_t threads[3], forking[2];
    for (long i = 0; i < 3; i++) pthread_create(&threads[i], NULL, busy, (void *)i);
    while (rounds < 100) usleep(100);
    for (long i = 0; i < 2; i++) pthread_create(&forking[i], NULL, forks, (void *)i);
    for (int i = 0; i < 2; i++) {
        void *sum;
        pthread_join(forking[i], &sum);
        printf("sum %ld\n", (long)sum);
    }
    // A child of a thread has that thread alone, and can start others.
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t thread;
        void *result;
        pthread_create(&thread, NULL, in_child, (void *)21);
        pthread_join(thread, &result);
        _exit((int)(long)result);
    }
    printf("threads of a child %d\n", status_of(pid));
    long before = rounds;
    while (rounds < before + 100) usleep(100);
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        // Replaced from a thread, with another one busy.
        pthread_t thread;
        pthread_create(&thread, NULL, busy, NULL);
        pthread_create(&thread, NULL, executes, NULL);
        for (;;) pause();
    }
    printf("exec from a thread %d\n", status_of(pid));
    stop = 1;
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    return 0;
}
