// flags: -O1
// Blocking calls and signals: EINTR without SA_RESTART, restart with it, sleeps that tell
// what is left, pause, ppoll and pselect with their own masks, waits that never restart.
#include "fault.h"
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>
#include <time.h>

static int ends[2], handled;

static void on_alarm(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    handled++;
    CHECK(write(ends[1], "x", 1) == 1);
}

static void soon(void) {
    struct itimerval once = {{0, 0}, {0, 40000}};
    setitimer(ITIMER_REAL, &once, NULL);
}

static void drain(void) {
    char c;
    CHECK(read(ends[0], &c, 1) == 1);
}

#define TELL(name, call)                                                        \
    do {                                                                        \
        errno = 0;                                                              \
        long result_ = (call);                                                  \
        int error_ = errno;                                                     \
        printf("%-22s %ld errno %d handled %d\n", name, result_, error_, handled); \
    } while (0)

int main(void) {
    char c;
    sigset_t alarm_set, empty;
    sigemptyset(&empty), sigemptyset(&alarm_set), sigaddset(&alarm_set, SIGALRM);
    CHECK(pipe(ends) == 0);
    handle(SIGALRM, on_alarm, 0);
    soon();
    TELL("read", read(ends[0], &c, 1));
    drain();
    handle(SIGALRM, on_alarm, SA_RESTART);
    soon();
    TELL("read, restarted", read(ends[0], &c, 1));

    struct timespec second = {5, 0}, left = {9, 9};
    soon();
    TELL("nanosleep", nanosleep(&second, &left));
    printf("left %ld, some %d\n", (long)left.tv_sec, left.tv_nsec > 900000000);
    drain();
    soon();
    TELL("clock_nanosleep", clock_nanosleep(CLOCK_MONOTONIC, 0, &second, &left));
    drain();
    soon();
    TELL("pause", pause());
    drain();
    soon();
    TELL("poll", poll(NULL, 0, 5000));
    drain();
    soon();
    TELL("select", select(0, NULL, NULL, NULL, &(struct timeval){5, 0}));
    drain();
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    soon();
    TELL("epoll_wait", epoll_wait(epoll, &event, 1, 5000));
    drain();

    // Blocked outside, open inside the call only.
    sigprocmask(SIG_BLOCK, &alarm_set, NULL);
    soon();
    TELL("ppoll", ppoll(NULL, 0, &second, &empty));
    drain();
    soon();
    TELL("pselect", pselect(0, NULL, NULL, NULL, &second, &empty));
    drain();
    soon();
    TELL("epoll_pwait", epoll_pwait(epoll, &event, 1, 5000, &empty));
    drain();
    soon();
    TELL("sigsuspend", sigsuspend(&empty));
    drain();
    soon();
    siginfo_t info;
    TELL("sigwaitinfo", sigwaitinfo(&alarm_set, &info));
    // Ready descriptors win over the signal, which stays pending.
    raise(SIGALRM);
    CHECK(write(ends[1], "y", 1) == 1);
    struct pollfd ready = {.fd = ends[0], .events = POLLIN};
    TELL("ppoll, ready", ppoll(&ready, 1, &second, &alarm_set));
    drain();
    sigprocmask(SIG_UNBLOCK, &alarm_set, NULL);
    printf("handled %d\n", handled);
    return 0;
}
