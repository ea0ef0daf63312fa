// flags: -O1 -pthread
// Signals to threads: each goes to its thread, masks are each thread's own, a waiting thread
// takes the process's, and sleeping calls are interrupted where they should be.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 3, EACH = 300 };

static volatile int stop;
static __thread volatile long got;
static __thread volatile long strays;
static __thread pid_t tid;
static pid_t tids[THREADS];
static pthread_barrier_t started;

static void on_signal(int signo, siginfo_t *info, void *context) {
    (void)signo, (void)context;
    got++;
    if (info->si_value.sival_int != (int)(tid & 0xffff))
        strays++;
}

static void *target(void *argument) {
    long id = (long)argument;
    volatile unsigned long work = 0;
    tid = tids[id] = (pid_t)syscall(SYS_gettid);
    pthread_barrier_wait(&started);
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE) || got < EACH) {
        work = work * 3 + 1;
        if (id == 1)
            syscall(SYS_getppid);
        if (id == 2)
            usleep(50);
    }
    return (void *)(got * 1000 + strays);
}

static void storm(void) {
    pthread_t threads[THREADS];
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN, &action, NULL);
    pthread_barrier_init(&started, NULL, THREADS + 1);
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, target, (void *)i);
    pthread_barrier_wait(&started);
    for (int round = 0; round < EACH; round++)
        for (int i = 0; i < THREADS; i++) {
            union sigval value = {.sival_int = tids[i] & 0xffff};
            while (pthread_sigqueue(threads[i], SIGRTMIN, value) == EAGAIN)
                usleep(100);
        }
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        printf("thread %d: %ld signals, %ld strays\n", i, (long)result / 1000, (long)result % 1000);
    }
}

static sem_t asleep;

static void *waits(void *argument) {
    sigset_t *set = argument;
    long sum = 0;
    for (int i = 0; i < 3; i++) {
        int signo;
        sigwait(set, &signo);
        sum = sum * 100 + signo;
        sem_post(&asleep);
    }
    return (void *)sum;
}

static void process_directed(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_t thread;
    sem_init(&asleep, 0, 0);
    pthread_create(&thread, NULL, waits, &set);
    const int sent[] = {SIGUSR1, SIGUSR2, SIGUSR1};
    for (int i = 0; i < 3; i++) {
        kill(getpid(), sent[i]);
        while (sem_wait(&asleep) != 0) {
        }
    }
    void *result;
    pthread_join(thread, &result);
    printf("waited for: %ld\n", (long)result);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void nothing(int signo) { (void)signo; }
static void *sleeper(void *argument) {
    int *ends = argument;
    char byte;
    sem_post(&asleep);
    long interrupted = read(ends[0], &byte, 1) == -1 && errno == EINTR;
    sem_post(&asleep);
    struct timespec long_time = {1000, 0};
    interrupted = interrupted * 10 + (nanosleep(&long_time, NULL) == -1 && errno == EINTR);
    return (void *)interrupted;
}

static void interrupted_calls(void) {
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, NULL);
    int ends[2];
    if (pipe(ends) != 0)
        return;
    sem_init(&asleep, 0, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, sleeper, ends);
    for (int i = 0; i < 2; i++) {
        sem_wait(&asleep);
        usleep(50000);
        pthread_kill(thread, SIGUSR1);
    }
    void *result;
    pthread_join(thread, &result);
    printf("interrupted: %02ld\n", (long)result);
}

int main(void) {
    storm();
    process_directed();
    interrupted_calls();
    printf("no such thread: %d\n", (int)syscall(SYS_tgkill, getpid(), tids[0], 0) == -1 && errno == ESRCH);
    return 0;
}
