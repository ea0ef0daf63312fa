// What single steps of a session cost: `sessions STEP ROUNDS` prints the median of ROUNDS
// rounds in nanoseconds a step.

#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void wait_for(pid_t child) {
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        perror("child");
        exit(1);
    }
}

// Each does one round and says how many steps it had.

static int step_getppid(void) {
    enum { CALLS = 20000 };
    for (int i = 0; i < CALLS; i++) {
        syscall(SYS_getppid);
    }
    return CALLS;
}

static int step_fork(void) {
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    wait_for(child);
    return 1;
}

static int step_exec(void) {
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/true", "true", (char *)0);
        _exit(127);
    }
    wait_for(child);
    return 1;
}

static int step_spawn(void) {
    char *words[] = {"true", 0};
    char *none[] = {0};
    pid_t child = -1;
    posix_spawn(&child, "/bin/true", 0, 0, words, none);
    wait_for(child);
    return 1;
}

static void *nothing(void *argument) {
    return argument;
}

static int step_thread(void) {
    pthread_t thread;
    if (pthread_create(&thread, 0, nothing, 0) != 0 || pthread_join(thread, 0) != 0) {
        fputs("no thread\n", stderr);
        exit(1);
    }
    return 1;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words) {
    static const struct {
        const char *name;
        int (*step)(void);
    } steps[] = {
        {"getppid", step_getppid}, {"fork", step_fork},     {"exec", step_exec},
        {"spawn", step_spawn},     {"thread", step_thread},
    };
    int rounds = count == 3 ? atoi(words[2]) : 0;
    for (size_t i = 0; rounds > 0 && i < sizeof steps / sizeof *steps; i++) {
        if (strcmp(words[1], steps[i].name) != 0) {
            continue;
        }
        double *times = calloc(rounds, sizeof *times);
        // The first rounds also make the code.
        for (int round = -rounds / 4 - 1; round < rounds; round++) {
            double start = now();
            int done = steps[i].step();
            if (round >= 0) {
                times[round] = (now() - start) / done;
            }
        }
        qsort(times, rounds, sizeof *times, compare);
        printf("%.1f\n", times[rounds / 2]);
        return 0;
    }
    fputs("usage: sessions getppid|fork|exec|spawn|thread ROUNDS\n", stderr);
    return 2;
}
