// flags: -O1 -mno-red-zone
// Single-stepping by RFLAGS.TF: a trap after each instruction with the RIP of the next, also
// over calls, taken branches, string instructions (a trap an iteration) and system calls.
#include "fault.h"

extern char stepped[];
static int offsets[64], codes, count;

static void step(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    codes += info->si_code == TRAP_TRACE && (greg_t)info->si_addr == REG(uc, RIP);
    if (count < 64)
        offsets[count] = (int)((char *)REG(uc, RIP) - stepped);
    count++;
}

int main(void) {
    static char from[8] = "abcdefg", to[8];
    handle(SIGTRAP, step, 0);
    void *s = from, *d = to;
    long c = 5;
    asm volatile("pushf; orl $0x100,(%%rsp); popf\n"
                 "stepped: nop\n"
                 "mov $3,%%eax\n"
                 "1: dec %%eax\n"
                 "jnz 1b\n"
                 "call 2f\n"
                 "rep movsb\n"
                 "push %%rcx; push %%rsi; push %%rdi\n"
                 "mov $39,%%eax\n"
                 "syscall\n"
                 "pop %%rdi; pop %%rsi; pop %%rcx\n"
                 "pushf; andl $~0x100,(%%rsp); popf\n"
                 "nop\n"
                 "jmp 3f\n"
                 "2: ret\n"
                 "3:"
                 : "+S"(s), "+D"(d), "+c"(c)
                 :
                 : "rax", "r11", "memory", "cc");
    printf("%d steps, %d right, copied %s:", count, codes, to);
    for (int i = 0; i < count && i < 64; i++)
        printf(" %d", offsets[i]);
    printf("\n");
    return 0;
}
