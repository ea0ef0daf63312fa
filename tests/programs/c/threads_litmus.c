// flags: -O2 -pthread
// heavy
// Outcomes that x86-TSO forbids must not show, however the code is arranged: message
// passing, load-load and store-store order, write-to-read causality, a thread's own store
// forwarded, store buffering with fences and with locked instructions.
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROUNDS = 20000 };
static int rounds = ROUNDS;

static struct { volatile int x; char gap[60]; volatile int y; char gap2[60]; volatile int z; } all[ROUNDS];
static volatile int go[2];
static int out[2][3];

static void meet(int side, int round) {
    __atomic_store_n(&go[side], round, __ATOMIC_SEQ_CST);
    for (int spins = 0; __atomic_load_n(&go[!side], __ATOMIC_SEQ_CST) < round; spins++)
        if (spins > 200)
            sched_yield();
}

#define CELL all[round]
enum { BUFFER_FENCE, BUFFER_LOCK, MESSAGE, LOAD_LOAD, FORWARD, CAUSALITY, TESTS };
static const char *const names[] = {"store buffering, fences", "store buffering, locked", "message passing",
                                    "load-load", "own store forwarded", "causality"};
static int test;

static void side(int me, int round) {
    int *mine = out[me];
    switch (test) {
    case BUFFER_FENCE:
        if (me) { CELL.x = 1; __sync_synchronize(); mine[0] = CELL.y; }
        else { CELL.y = 1; __sync_synchronize(); mine[0] = CELL.x; }
        break;
    case BUFFER_LOCK: {
        int one = 1;
        if (me) { __asm__ volatile("xchg %0,%1" : "+r"(one), "+m"(CELL.x)); mine[0] = CELL.y; }
        else { __asm__ volatile("xchg %0,%1" : "+r"(one), "+m"(CELL.y)); mine[0] = CELL.x; }
        break;
    }
    case MESSAGE:
        if (me) { CELL.x = 7; CELL.y = 1; }
        else { mine[0] = CELL.y; mine[1] = CELL.x; }
        break;
    case LOAD_LOAD:
        if (me) { CELL.x = 1; CELL.x = 2; }
        else { mine[0] = CELL.x; mine[1] = CELL.x; }
        break;
    case FORWARD:
        // x=1; r1=y; r2=x against: if x==1 {x=2}; y=1.
        if (me) { CELL.x = 1; mine[0] = CELL.y; mine[1] = CELL.x; }
        else { mine[0] = CELL.x; if (mine[0] == 1) CELL.x = 2; CELL.y = 1; }
        break;
    case CAUSALITY:
        if (me) { CELL.x = 1; }
        else { mine[0] = CELL.x; CELL.y = 1; mine[1] = CELL.x; }
        break;
    }
}

static int forbidden(void) {
    int *a = out[1], *b = out[0];
    switch (test) {
    case BUFFER_FENCE:
    case BUFFER_LOCK: return a[0] == 0 && b[0] == 0;
    case MESSAGE: return b[0] == 1 && b[1] != 7;
    case LOAD_LOAD: return b[0] > b[1];
    case FORWARD: return b[0] == 1 && a[0] == 1 && a[1] == 1;
    default: return b[0] == 1 && b[1] == 0;
    }
}

static void *other(void *argument) {
    (void)argument;
    for (int round = 0; round < rounds; round++) {
        meet(1, 2 * round + 1);
        side(1, round);
        meet(1, 2 * round + 2);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc > 1)
        rounds = atoi(argv[1]);
    for (test = 0; test < TESTS; test++) {
        pthread_t thread;
        long seen = 0;
        for (int round = 0; round < rounds; round++)
            all[round].x = all[round].y = all[round].z = 0;
        go[0] = go[1] = 0;
        pthread_create(&thread, NULL, other, NULL);
        for (int round = 0; round < rounds; round++) {
            meet(0, 2 * round + 1);
            side(0, round);
            meet(0, 2 * round + 2);
            seen += forbidden();
        }
        pthread_join(thread, NULL);
        printf("%s: %ld\n", names[test], seen);
    }
    return 0;
}
