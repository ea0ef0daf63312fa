// flags: -O1
// At a fault all registers and flags are exact, and a handler that edits them is obeyed.
#include "fault.h"

extern char faulting[], resumed[];
static unsigned long seen[18];

static void edit(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info;
    int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RBP, REG_RSI, REG_RDI, REG_R8,
                   REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    greg_t *regs = ((ucontext_t *)uc)->uc_mcontext.gregs;
    CHECK((char *)regs[REG_RIP] == faulting);
    for (int i = 0; i < 15; i++) {
        seen[i] = regs[order[i]];
        regs[order[i]] += 0x100;
    }
    seen[15] = regs[REG_EFL] & 0xcd5;
    regs[REG_EFL] ^= 0x8c1; // carry, zero, sign, overflow
    regs[REG_RIP] = (greg_t)resumed;
}

int main(void) {
    static unsigned long result[16];
    handle(SIGSEGV, edit, 0);
    for (int round = 0; round < 3000; round++) {
        asm volatile(
            "push %%rbp; push %%rbx\n"
            "lea %0, %%rax; push %%rax\n"
            "mov $1,%%ecx; mov $2,%%edx; mov $3,%%ebx; mov $5,%%esi; mov $6,%%edi\n"
            "mov $8,%%r8; mov $9,%%r9; mov $10,%%r10; mov $11,%%r11; mov $12,%%r12\n"
            "mov $13,%%r13; mov $14,%%r14; mov $15,%%r15; mov $4,%%ebp\n"
            "mov $0x7fffffff,%%eax; add $0x7fffffff,%%eax; stc\n"
            "mov $0,%%eax\n"
            "faulting: mov 0x10(%%rax),%%rcx\n"
            "ud2\n"
            "resumed: xchg %%rax,(%%rsp)\n"
            "mov %%rcx,8(%%rax); mov %%rdx,16(%%rax); mov %%rbx,24(%%rax); mov %%rbp,32(%%rax)\n"
            "mov %%rsi,40(%%rax); mov %%rdi,48(%%rax); mov %%r8,56(%%rax); mov %%r9,64(%%rax)\n"
            "mov %%r10,72(%%rax); mov %%r11,80(%%rax); mov %%r12,88(%%rax); mov %%r13,96(%%rax)\n"
            "mov %%r14,104(%%rax); mov %%r15,112(%%rax)\n"
            "pop %%rcx; mov %%rcx,(%%rax)\n"
            "pushf; pop %%rcx; and $0xcd5,%%ecx; mov %%rcx,120(%%rax)\n"
            "pop %%rbx; pop %%rbp\n"
            : "+m"(result[0])
            :
            : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
              "r15", "memory", "cc");
        for (int i = 0; i < 15; i++)
            CHECK(result[i] == seen[i] + 0x100);
        CHECK(result[15] == (seen[15] ^ 0x8c1));
    }
    for (int i = 0; i < 16; i++)
        printf("%lx -> %lx\n", seen[i], result[i]);
    return 0;
}
