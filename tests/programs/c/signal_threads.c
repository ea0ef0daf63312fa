// flags: -O1 -pthread
// Signals and threads: a mask and an alternate stack for each, signals to one thread and to
// the process, sigwait, cancellation, what the C library does behind set*id, which thread
// gets what, and signals to threads that end.
#include "fault.h"
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <time.h>

static sem_t ready, go;
static __thread int me;
static volatile int handled_by[70], handled;

static void handler(int signo, siginfo_t *info, void *uc) {
    (void)info, (void)uc;
    handled_by[signo] = me;
    __atomic_fetch_add(&handled, 1, __ATOMIC_SEQ_CST);
}

static sigset_t set_of(int a, int b) {
    sigset_t set;
    sigemptyset(&set);
    if (a) sigaddset(&set, a);
    if (b) sigaddset(&set, b);
    return set;
}

static void mask(int how, int a, int b) {
    sigset_t set = set_of(a, b);
    CHECK(pthread_sigmask(how, &set, NULL) == 0);
}

static int blocks(int signo) {
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    return sigismember(&now, signo);
}

static int waits(int signo) {
    sigset_t now;
    sigpending(&now);
    return sigismember(&now, signo);
}

static void until(int count) {
    while (handled < count)
        usleep(200);
}

static void *masked(void *number) {
    me = (int)(long)number;
    printf("inherits USR1 %d, USR2 %d\n", blocks(SIGUSR1), blocks(SIGUSR2));
    mask(SIG_UNBLOCK, SIGUSR1, 0);
    mask(SIG_BLOCK, SIGUSR2, 0);
    mask(SIG_BLOCK, SIGRTMIN, SIGRTMIN + 1);
    sem_post(&ready);
    sem_wait(&go);
    printf("waits for it alone %d, for all %d\n", waits(SIGRTMIN), waits(SIGRTMIN + 1));
    sem_post(&ready);
    sem_wait(&go);
    return NULL;
}

static void masks(void) {
    pthread_t thread;
    mask(SIG_BLOCK, SIGUSR1, 0);
    CHECK(pthread_create(&thread, NULL, masked, (void *)1) == 0);
    sem_wait(&ready);
    handled = 0;
    // Blocked here, not there; blocked there, not here.
    kill(getpid(), SIGUSR1);
    until(1);
    kill(getpid(), SIGUSR2);
    until(2);
    printf("USR1 by %d, USR2 by %d\n", handled_by[SIGUSR1], handled_by[SIGUSR2]);
    pthread_kill(thread, SIGUSR1);
    until(3);
    printf("USR1 by %d\n", handled_by[SIGUSR1]);
    mask(SIG_BLOCK, SIGRTMIN, SIGRTMIN + 1);
    pthread_kill(thread, SIGRTMIN);
    kill(getpid(), SIGRTMIN + 1);
    sem_post(&go);
    sem_wait(&ready);
    printf("here %d, for all %d\n", waits(SIGRTMIN), waits(SIGRTMIN + 1));
    sem_post(&go);
    pthread_join(thread, NULL);
    // It took what waited for it along.
    printf("after it %d\n", handled);
    mask(SIG_SETMASK, 0, 0);
    until(4);
    printf("all %d by %d\n", handled, handled_by[SIGRTMIN + 1]);
}

static void *waiter(void *unused) {
    (void)unused;
    sigset_t set = set_of(SIGUSR1, SIGRTMIN);
    for (;;) {
        siginfo_t info;
        sem_post(&ready);
        int got = sigwaitinfo(&set, &info);
        printf("waited %d code %d value %d\n", got, info.si_code, info.si_value.sival_int);
        if (got == SIGUSR1)
            return NULL;
    }
}

static void sigwaits(void) {
    pthread_t thread;
    mask(SIG_BLOCK, SIGUSR1, SIGRTMIN);
    CHECK(pthread_create(&thread, NULL, waiter, NULL) == 0);
    for (int i = 0; i < 3; i++) {
        sem_wait(&ready);
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 10 + i});
    }
    sem_wait(&ready);
    union sigval value = {.sival_int = 99};
    pthread_sigqueue(thread, SIGUSR1, value);
    pthread_join(thread, NULL);
    mask(SIG_SETMASK, 0, 0);
}

static char stacks[3][65536];
static volatile int on_own[3];

static void on_stack(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    char here;
    on_own[me] = &here > stacks[me] && &here < stacks[me] + sizeof stacks[me];
    handled++;
}

static void *with_stack(void *number) {
    me = (int)(long)number;
    stack_t now, mine = {.ss_sp = stacks[me], .ss_size = sizeof stacks[me]};
    sigaltstack(NULL, &now);
    CHECK(now.ss_flags == SS_DISABLE);
    CHECK(sigaltstack(&mine, NULL) == 0);
    pthread_kill(pthread_self(), SIGHUP);
    *(volatile int *)8 = 1;
    return NULL;
}

static void faulted(int signo, siginfo_t *info, void *uc) {
    on_stack(signo, info, uc);
    if (me == 1)
        printf("address %ld\n", (long)info->si_addr);
    pthread_exit(NULL);
}

static void stacks_of_their_own(void) {
    handle(SIGHUP, on_stack, SA_ONSTACK);
    handle(SIGSEGV, faulted, SA_ONSTACK);
    pthread_t thread[2];
    handled = 0;
    for (long i = 0; i < 2; i++) {
        CHECK(pthread_create(&thread[i], NULL, with_stack, (void *)(i + 1)) == 0);
        pthread_join(thread[i], NULL);
    }
    printf("on their stacks %d %d, handled %d\n", on_own[1], on_own[2], handled);
    signal(SIGSEGV, SIG_DFL);
}

static int ends[2];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static volatile long spins;

static void clean(void *what) { printf("cleans %s\n", (char *)what); }

static void *reads(void *unused) {
    (void)unused;
    char byte;
    pthread_cleanup_push(clean, "read");
    sem_post(&ready);
    CHECK(read(ends[0], &byte, 1) != 1);
    pthread_cleanup_pop(0);
    return NULL;
}

static void unlock(void *unused) { (void)unused, pthread_mutex_unlock(&lock), clean("lock"); }

static void *conditions(void *unused) {
    (void)unused;
    pthread_mutex_lock(&lock);
    pthread_cleanup_push(unlock, NULL);
    sem_post(&ready);
    for (;;)
        pthread_cond_wait(&cond, &lock);
    pthread_cleanup_pop(0);
    return NULL;
}

static void *sleeps(void *unused) {
    (void)unused;
    pthread_cleanup_push(clean, "sleep");
    sem_post(&ready);
    for (;;)
        sleep(100);
    pthread_cleanup_pop(0);
    return NULL;
}

static void *spinning(void *unused) {
    (void)unused;
    int old;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
    pthread_cleanup_push(clean, "spin");
    sem_post(&ready);
    for (;;)
        spins++;
    pthread_cleanup_pop(0);
    return NULL;
}

static void *stubborn(void *unused) {
    (void)unused;
    int old;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
    sem_post(&ready);
    sem_wait(&go);
    printf("not cancelled\n");
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
    pthread_testcancel();
    printf("never here\n");
    return NULL;
}

static void cancels(void) {
    void *(*bodies[])(void *) = {reads, conditions, sleeps, spinning, stubborn};
    CHECK(pipe(ends) == 0);
    for (int i = 0; i < 5; i++) {
        pthread_t thread;
        void *result;
        CHECK(pthread_create(&thread, NULL, bodies[i], NULL) == 0);
        sem_wait(&ready);
        usleep(3000);
        CHECK(pthread_cancel(thread) == 0);
        if (i == 4)
            sem_post(&go);
        pthread_join(thread, &result);
        printf("%d cancelled %d\n", i, result == PTHREAD_CANCELED);
    }
}

static volatile int stop;

static void *computes(void *unused) {
    (void)unused;
    while (!stop)
        spins++;
    return NULL;
}

static void identities(void) {
    // Each call reaches every thread by signal 33.
    pthread_t spin, block;
    CHECK(pthread_create(&spin, NULL, computes, NULL) == 0);
    CHECK(pthread_create(&block, NULL, sleeps, NULL) == 0);
    sem_wait(&ready);
    int failed = 0;
    for (int i = 0; i < 50; i++)
        failed += setresuid(getuid(), geteuid(), -1) || setresgid(getgid(), getegid(), -1);
    printf("set failed %d\n", failed);
    stop = 1;
    pthread_join(spin, NULL);
    pthread_cancel(block);
    pthread_join(block, NULL);
}

static void *ends_soon(void *unused) { return unused; }

static void endings(void) {
    // Signals to the process while threads end: each is handled, once.
    handle(SIGRTMIN + 2, handler, SA_RESTART);
    handled = 0;
    int sent = 0;
    for (int i = 0; i < 300; i++) {
        pthread_t thread[3];
        for (int j = 0; j < 3; j++)
            CHECK(pthread_create(&thread[j], NULL, ends_soon, NULL) == 0);
        mask(SIG_BLOCK, SIGRTMIN + 2, 0);
        for (int j = 0; j < 3; j++) {
            sent += kill(getpid(), SIGRTMIN + 2) == 0;
            pthread_join(thread[j], NULL);
        }
        mask(SIG_UNBLOCK, SIGRTMIN + 2, 0);
    }
    for (int i = 0; i < 1000 && handled < sent; i++)
        usleep(1000);
    printf("handled all %d\n", __atomic_load_n(&handled, __ATOMIC_SEQ_CST) == sent);
}

int main(void) {
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    sem_init(&ready, 0, 0), sem_init(&go, 0, 0);
    int signals[] = {SIGUSR1, SIGUSR2, SIGRTMIN, SIGRTMIN + 1};
    for (int i = 0; i < 4; i++)
        handle(signals[i], handler, SA_RESTART);
    masks();
    sigwaits();
    stacks_of_their_own();
    cancels();
    identities();
    endings();
    return 0;
}
