// flags: -O2 -Wno-infinite-recursion -Wno-clobbered
// makecontext and swapcontext: coroutines on stacks of their own, switching in a hot loop,
// with masks of their own, and one that ends into uc_link. setjmp/longjmp beside it.
#include "fault.h"

static ucontext_t home, tasks[4];
static long sums[4];
static jmp_buf back;

static void task(int number, int steps) {
    for (int i = 0; i < steps; i++) {
        sums[number] += i * (number + 1);
        swapcontext(&tasks[number], &tasks[(number + 1) % 4]);
    }
}

static void single(void) { sums[0]++; }

static __attribute__((noinline)) void deeper(int n) {
    if (n == 0)
        longjmp(back, 7);
    else
        deeper(n - 1);
    asm volatile("");
}

// Leaves the handler by switching away; it is resumed later and returns.
static void on_usr1(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    swapcontext(&tasks[3], &home);
    sums[3] += 1000;
}

static void raiser(void) {
    raise(SIGUSR1);
    sums[3] += 1;
}

static void prepare(ucontext_t *task, void *stack, void (*f)(void)) {
    getcontext(task);
    task->uc_stack.ss_sp = stack;
    task->uc_stack.ss_size = 65536;
    task->uc_link = &home;
    makecontext(task, f, 0);
}

int main(void) {
    for (int i = 0; i < 4; i++) {
        getcontext(&tasks[i]);
        tasks[i].uc_stack.ss_sp = pages(16, PROT_READ | PROT_WRITE);
        tasks[i].uc_stack.ss_size = 65536;
        tasks[i].uc_link = &home;
        makecontext(&tasks[i], (void (*)(void))task, 2, i, 5000);
    }
    swapcontext(&home, &tasks[0]);
    printf("%ld %ld %ld %ld\n", sums[0], sums[1], sums[2], sums[3]);

    void *stack = tasks[1].uc_stack.ss_sp;
    for (volatile int i = 0; i < 1000; i++) {
        prepare(&tasks[0], stack, single);
        sigaddset(&tasks[0].uc_sigmask, SIGHUP);
        swapcontext(&home, &tasks[0]);
    }
    volatile long jumps = 0;
    for (volatile int i = 0; i < 5000; i++)
        if (setjmp(back) == 0)
            deeper(i % 50);
        else
            jumps++;
    handle(SIGUSR1, on_usr1, 0);
    prepare(&tasks[0], stack, raiser);
    swapcontext(&home, &tasks[0]);
    printf("%ld, jumps %ld, away\n", sums[0], jumps);
    swapcontext(&home, &tasks[3]);
    printf("%ld\n", sums[3]);
    return 0;
}
