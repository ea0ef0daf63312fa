// flags: -O2
// Time by the vdso, called hot: monotonic, agreeing with the system call, errors as ever.
#include "fault.h"
#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static long long now(clockid_t clock) {
    struct timespec t;
    CHECK(clock_gettime(clock, &t) == 0);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(void) {
    long long last = now(CLOCK_MONOTONIC), first = last;
    for (int i = 0; i < 300000; i++) {
        long long next = now(CLOCK_MONOTONIC);
        CHECK(next >= last);
        last = next;
    }
    CHECK(last > first);
    struct timespec t, res;
    long long before = now(CLOCK_REALTIME);
    CHECK(syscall(SYS_clock_gettime, CLOCK_REALTIME, &t) == 0);
    long long kernel = t.tv_sec * 1000000000ll + t.tv_nsec, after = now(CLOCK_REALTIME);
    CHECK(before <= kernel && kernel <= after);
    struct timeval tv;
    CHECK(gettimeofday(&tv, NULL) == 0 && tv.tv_sec - time(NULL) <= 0 && time(NULL) - tv.tv_sec <= 2);
    CHECK(clock_getres(CLOCK_MONOTONIC, &res) == 0 && res.tv_sec == 0);
    unsigned cpu, node;
    CHECK(getcpu(&cpu, &node) == 0 && sched_getcpu() >= 0);
    CHECK(now(CLOCK_PROCESS_CPUTIME_ID) > 0 && now(CLOCK_THREAD_CPUTIME_ID) > 0);
    CHECK(clock_gettime(12345, &t) == -1 && errno == EINVAL);
    printf("right\n");
    return 0;
}
