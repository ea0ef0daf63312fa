// flags: -O0 -pthread
// Hot loops over frame slots while the process changes around them: children are forked and
// threads started in the middle of them, a thread writes a slot that a loop waits for, and a
// loop's own code changes.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned long work(int n, unsigned long start) {
    unsigned long sum = start, other = 7;
    int place[4] = {1, 2, 3, 4};
    for (int i = 0; i < n; i++) {
        place[i & 3] += i;
        sum = sum * 31 + place[(i + 1) & 3];
        other ^= sum >> 3;
    }
    return sum ^ other;
}

// Forks in a hot loop: the child goes on in it, too.
static unsigned long forks(int n) {
    unsigned long sum = 1;
    int children = 0;
    for (int i = 0; i < n; i++) {
        sum = sum * 7 + i;
        if (i % 4000 == 3999) {
            pid_t child = fork();
            if (child == 0) {
                for (int j = 0; j < 5000; j++)
                    sum = sum * 5 + j;
                _exit(sum & 127);
            }
            int status = 0;
            waitpid(child, &status, 0);
            sum += WEXITSTATUS(status);
            children++;
        }
    }
    return sum + children;
}

struct mail {
    volatile int *slot;
    long *total;
};

static void *deliver(void *argument) {
    struct mail *mail = argument;
    unsigned long sum = work(3000, 5);
    *mail->total += sum;
    usleep(1000);
    *mail->slot = 1;
    return NULL;
}

// A thread starts in a hot loop, and writes what its starter keeps reading.
static unsigned long threads(int n) {
    unsigned long sum = 1;
    long total = 0;
    for (int i = 0; i < n; i++) {
        volatile int slot = 0;
        sum = sum * 3 + work(200, i);
        if (i % 50 == 49) {
            pthread_t thread;
            struct mail mail = {&slot, &total};
            pthread_create(&thread, NULL, deliver, &mail);
            while (slot == 0)
                sum |= 1;
            pthread_join(thread, NULL);
            sum += total;
        }
    }
    return sum;
}

// A function whose constant is patched while a loop calls it.
static unsigned long patches(int n) {
    unsigned char code[] = {0x8d, 0x47, 0x05, 0xc3}; // lea 5(%rdi),%eax; ret
    unsigned char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(at, code, sizeof code);
    int (*add)(int) = (int (*)(int))at;
    unsigned long sum = 0;
    for (int i = 0; i < n; i++) {
        sum = sum * 3 + add(i);
        if (i % 500 == 499)
            at[2]++;
    }
    return sum;
}

int main(void) {
    printf("%lx\n", work(20000, 1));
    printf("%lx\n", patches(6000));
    printf("%lx\n", forks(30000));
    fflush(stdout);
    printf("%lx\n", threads(300));
    printf("%lx\n", work(20000, 2));
    printf("%lx\n", forks(9000));
    return 0;
}
