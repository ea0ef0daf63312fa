// flags: -O2
// heavy
// Trees and chains of processes that all compute, and loops of fork and exec.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned work(unsigned seed, int rounds) {
    for (int i = 0; i < rounds; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        if (seed % 3 == 0) seed += i;
    }
    return seed;
}

// Each process of a tree of this depth adds its children's results to its own.
static unsigned tree(int depth, unsigned seed) {
    unsigned own = work(seed, 20000) & 63;
    if (depth == 0) return own;
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
        children[i] = fork();
        if (children[i] < 0) return 200;
        if (children[i] == 0) _exit(tree(depth - 1, seed * 3 + i) & 127);
    }
    for (int i = 0; i < 3; i++) {
        int status;
        if (waitpid(children[i], &status, 0) != children[i] || !WIFEXITED(status)) return 201;
        own += WEXITSTATUS(status);
    }
    return own & 127;
}

// Each child forks the next one: generations of copies of copies.
static unsigned chain(int length) {
    unsigned own = work(length, 3000) & 15;
    if (length == 0) return own;
    pid_t child = fork();
    if (child == 0) _exit(chain(length - 1) & 127);
    int status;
    waitpid(child, &status, 0);
    return (own + WEXITSTATUS(status)) & 127;
}

int main(int argc, char **argv) {
    if (argc > 1) return (int)(work(atoi(argv[1]), 500) & 31);
    printf("tree %u\n", tree(3, 5));
    printf("chain %u\n", chain(30));
    unsigned sum = 0;
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0) _exit(work(i, 100) & 63);
        int status;
        waitpid(child, &status, 0);
        sum += WEXITSTATUS(status);
    }
    printf("forks %u\n", sum);
    sum = 0;
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (child == 0) {
            char text[16];
            sprintf(text, "%d", i);
            execl("/proc/self/exe", "again", text, (char *)NULL);
            _exit(99);
        }
        int status;
        waitpid(child, &status, 0);
        sum += WEXITSTATUS(status);
    }
    printf("executed %u\n", sum);
    // Many at once, killed while they work.
    pid_t running[20];
    for (int i = 0; i < 20; i++) {
        running[i] = fork();
        if (running[i] == 0)
            for (unsigned seed = i;;) seed = work(seed, 1000) | 1;
    }
    usleep(50000);
    int killed = 0;
    for (int i = 0; i < 20; i++) kill(running[i], SIGKILL);
    for (int i = 0; i < 20; i++) {
        int status;
        waitpid(running[i], &status, 0);
        killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    }
    printf("killed %d\n", killed);
    return 0;
}
