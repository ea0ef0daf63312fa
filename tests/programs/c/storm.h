// Signals in large numbers at random moments, for the programs that check what handlers see
// against a model. Each handler arms the next shot itself, so that the program always gets
// on between two.
#define _GNU_SOURCE
#include <stdatomic.h>
#include <time.h>
#include "fault.h"

// With STORM_THREADS each thread has a storm of its own.
#ifdef STORM_THREADS
#define OWN _Thread_local
#else
#define OWN
#endif

enum { SHOTS = 2 };
static OWN timer_t timers[SHOTS];
static OWN volatile long taken, wanted;
static OWN volatile int over;
static OWN unsigned long random_state = 88172645463325252ul;

static unsigned long next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

// Arms timer `i` for some microseconds from now.
static void shoot(int i) {
    struct itimerspec in = {{0, 0}, {0, 1000 + (long)(next_random() % 40000)}};
    if (!over)
        timer_settime(timers[i], 0, &in, NULL);
}

static void storm_over(void) {
    struct itimerspec never = {{0, 0}, {0, 0}};
    over = 1;
    for (int i = 0; i < SHOTS; i++)
        timer_settime(timers[i], 0, &never, NULL);
}

// A timer each for two signals, to the calling thread.
static void storm_prepare(int first, int second) {
    for (int i = 0; i < SHOTS; i++) {
        struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = i ? second : first};
        event._sigev_un._tid = gettid();
        event.sigev_value.sival_int = i;
        CHECK(timer_create(CLOCK_MONOTONIC, &event, &timers[i]) == 0);
    }
}

static void storm_begin(long signals) {
    taken = 0, wanted = signals, over = 0;
    for (int i = 0; i < SHOTS; i++)
        shoot(i);
}

// How many signals each part gets: argv[1], or what is affordable everywhere.
static long storm_size(int argc, char **argv, long parts) {
    long all = argc > 1 ? atol(argv[1]) : 10000;
    return all / parts;
}

// Ends a program that makes no progress with a word instead of a timeout.
static void complain(const char *what, long a, long b, long c) {
    storm_over();
    printf("%s: %lx %lx %lx after %ld signals\n", what, a, b, c, taken);
    fflush(stdout);
    _exit(1);
}
