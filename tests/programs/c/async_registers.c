// flags: -O1
// heavy
// Asynchronous frames hold the exact registers at an instruction boundary: in this loop
// certain relations hold at every one, and the handler checks them; then it ends the loop
// by editing a register, and in the end by moving RIP.
#include "fault.h"
#include <sys/time.h>

extern char loop_start[], loop_sub[], loop_end[], loop_left[];
static long inside, wrong, edits;

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    char *rip = (char *)REG(uc, RIP);
    if (rip < loop_start || rip >= loop_end)
        return;
    inside++;
    long r8 = REG(uc, R8), r9 = REG(uc, R9);
    // r9 follows r8 by at most one step, rbx and rsi never change, r12 is a copy of r8.
    if (r8 - r9 != 0 && r8 - r9 != 1)
        wrong++;
    if (REG(uc, RBX) != 0x1234567890 || REG(uc, RSI) != -77)
        wrong++;
    if (REG(uc, R12) != r8 && REG(uc, R12) != r8 - 1)
        wrong++;
    if (REG(uc, EFL) & 0x400)
        wrong++;
    if (inside % 5 == 0) {
        edits++;
        REG(uc, R15) = 1;
    } else if (inside > 60 && rip < loop_sub) { // not with a return address pushed
        REG(uc, RIP) = (greg_t)loop_left;
    }
}

int main(void) {
    handle(SIGALRM, tick, 0);
    struct itimerval every = {{0, 300}, {0, 300}};
    setitimer(ITIMER_REAL, &every, NULL);
    long rounds = 0;
    while (inside <= 60 && wrong == 0) {
        asm volatile("mov $0x1234567890,%%rbx; mov $-77,%%rsi\n"
                     "xor %%r8d,%%r8d; xor %%r9d,%%r9d; xor %%r12d,%%r12d; xor %%r15d,%%r15d\n"
                     "loop_start:\n"
                     "inc %%r8\n"
                     "mov %%r8,%%r12\n"
                     "call 2f\n"
                     "inc %%r9\n"
                     "test %%r15,%%r15\n"
                     "jz loop_start\n"
                     "jmp loop_left\n"
                     "loop_sub: 2: nop\n"
                     "ret\n"
                     "loop_end: loop_left:\n"
                     :
                     :
                     : "rbx", "rsi", "r8", "r9", "r12", "r15", "memory", "cc");
        rounds++;
    }
    printf("wrong %ld, edited %d, left %d\n", wrong, edits > 5, rounds > 5);
    return wrong != 0;
}
