// flags: -O1
// POSIX timers with values and overruns, virtual and profiling interval timers, alarm
// remaining, all against code that computes.
#include "fault.h"
#include <sys/time.h>
#include <time.h>

static volatile long real, virtual, profiling, posix, wrong;

static void count(int signo, siginfo_t *info, void *uc) {
    (void)uc;
    if (signo == SIGALRM) real++;
    if (signo == SIGVTALRM) virtual++;
    if (signo == SIGPROF) profiling++;
    if (signo == SIGRTMIN + 2) {
        posix++;
        wrong += info->si_code != SI_TIMER || info->si_value.sival_int != 4711;
    }
}

int main(void) {
    int signals[] = {SIGALRM, SIGVTALRM, SIGPROF, SIGRTMIN + 2};
    for (int i = 0; i < 4; i++)
        handle(signals[i], count, SA_RESTART);
    struct itimerval every = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}}, left;
    setitimer(ITIMER_REAL, &every, NULL);
    setitimer(ITIMER_VIRTUAL, &every, NULL);
    setitimer(ITIMER_PROF, &every, NULL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2};
    event.sigev_value.sival_int = 4711;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    struct itimerspec spec = {{0, 1500000}, {0, 1500000}};
    CHECK(timer_settime(timer, 0, &spec, NULL) == 0);
    unsigned long x = 1;
    for (long i = 0; real < 5 || virtual < 5 || profiling < 5 || posix < 5; i++) {
        x = x * 6364136223846793005ul + 1;
        CHECK(i < 20000000000l);
    }
    timer_delete(timer);
    setitimer(ITIMER_REAL, &off, NULL);
    setitimer(ITIMER_VIRTUAL, &off, NULL);
    setitimer(ITIMER_PROF, &off, NULL);
    alarm(100);
    getitimer(ITIMER_REAL, &left);
    printf("left %d, alarm said %d\n", left.it_value.tv_sec >= 98, alarm(0) >= 99);
    printf("wrong %ld\n", wrong);
    return wrong != 0;
}
