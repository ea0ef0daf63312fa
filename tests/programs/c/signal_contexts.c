// flags: -O1
// Handlers that never return the way they came: a scheduler that swaps contexts inside its
// timer's handler, siglongjmp from nested handlers and from the alternate stack.
#include "fault.h"
#include <sys/time.h>

enum { TASKS = 3, STACK = 1 << 16 };
static ucontext_t tasks[TASKS], main_context;
static char stacks[TASKS][STACK];
static volatile int current, switches, finished;
static volatile unsigned long results[TASKS];

static void preempt(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    int from = current;
    current = (current + 1) % TASKS;
    switches++;
    // The mask of the handler goes along and comes back with the other context.
    swapcontext(&tasks[from], &tasks[current]);
}

static void task(int number) {
    sigset_t none;
    sigemptyset(&none);
    unsigned long x = number + 1;
    double d = number + 0.5;
    do {
        x = number + 1, d = number + 0.5;
        // A context made by makecontext begins with the mask that its maker had, which blocks
        // the timer: swapcontext opens the mask before it leaves the stack.
        sigprocmask(SIG_SETMASK, &none, NULL);
        for (int i = 0; i < 20000; i++) {
            x = x * 6364136223846793005ul + 1442695040888963407ul;
            d = d * 0.999 + (x >> 60);
        }
    } while (switches < 60);
    results[number] = x + (unsigned long)(d * 1000);
    sigset_t alarm_set;
    sigemptyset(&alarm_set), sigaddset(&alarm_set, SIGALRM);
    sigprocmask(SIG_BLOCK, &alarm_set, NULL);
    finished++;
    if (finished == TASKS)
        setcontext(&main_context);
    // Hand over for good.
    sigset_t open;
    sigemptyset(&open);
    for (;;)
        sigsuspend(&open);
}

static void scheduler(void) {
    handle(SIGALRM, preempt, 0);
    sigset_t alarm_set, none;
    sigemptyset(&alarm_set), sigaddset(&alarm_set, SIGALRM), sigemptyset(&none);
    sigprocmask(SIG_BLOCK, &alarm_set, NULL);
    for (int i = 0; i < TASKS; i++) {
        getcontext(&tasks[i]);
        tasks[i].uc_stack.ss_sp = stacks[i];
        tasks[i].uc_stack.ss_size = STACK;
        makecontext(&tasks[i], (void (*)(void))task, 1, i);
    }
    struct itimerval every = {{0, 700}, {0, 700}}, off = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &every, NULL);
    current = 0;
    swapcontext(&main_context, &tasks[0]);
    setitimer(ITIMER_REAL, &off, NULL);
    printf("scheduled %d, results %lx %lx %lx\n", switches >= 60, results[0], results[1], results[2]);
    signal(SIGALRM, SIG_IGN);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static sigjmp_buf places[3];
static int depth;

static void jumps(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    int here = depth++;
    if (here < 2) {
        if (sigsetjmp(places[here], 1) == 0)
            raise(here ? SIGUSR1 : SIGUSR2);
        printf("back in %d\n", here);
        siglongjmp(places[2], 1);
    }
    siglongjmp(places[1], 1);
}

static int blocked(int signo) {
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    return sigismember(&now, signo);
}

static void nested(void) {
    static char stack[1 << 16];
    stack_t mine = {.ss_sp = stack, .ss_size = sizeof stack}, now;
    sigaltstack(&mine, NULL);
    for (volatile int on_stack = 0; on_stack < 2; on_stack++) {
        handle(SIGUSR1, jumps, (on_stack ? SA_ONSTACK : 0) | SA_NODEFER);
        handle(SIGUSR2, jumps, on_stack ? SA_ONSTACK : 0);
        for (volatile int i = 0; i < 3; i++) {
            depth = 0;
            if (sigsetjmp(places[2], 1) == 0)
                raise(SIGUSR1);
        }
        sigaltstack(NULL, &now);
        printf("blocked %d %d, on the stack %d\n", blocked(SIGUSR1), blocked(SIGUSR2),
               now.ss_flags);
    }
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    scheduler();
    nested();
    return 0;
}
