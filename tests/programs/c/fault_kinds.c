// flags: -O1 -mno-red-zone
// Each kind of fault reaches the handler with the kernel's si_code, si_addr, trap number,
// error code, CR2, RIP and resume flag.
#include "fault.h"

static sigjmp_buf out;
static unsigned long origin, page;

static void report(int signo, siginfo_t *info, void *uc) {
    // AC, and an x87 exception, would hit the handler itself.
    asm volatile("pushf; andl $~0x40000,(%%rsp); popf; fninit" ::: "memory", "cc");
    unsigned long rip = REG(uc, RIP), addr = (unsigned long)info->si_addr, cr2 = REG(uc, CR2);
    printf("signal %d code %d ", signo, info->si_code);
    if (addr && addr == rip)
        printf("addr=rip ");
    else if (page && addr - page < 8192)
        printf("addr=page+%lx ", addr - page);
    else
        printf("addr %lx ", addr);
    if (page && rip - page < 8192)
        printf("rip=page+%lx ", rip - page);
    else
        printf("rip+%ld ", (long)(rip - origin));
    printf("trap %d err %x ", (int)REG(uc, TRAPNO), (int)REG(uc, ERR));
    if (page && cr2 - page < 8192)
        printf("cr2=page+%lx ", cr2 - page);
    else
        printf("cr2 %lx ", cr2);
    printf("rf %d\n", (int)(REG(uc, EFL) >> 16 & 1));
    siglongjmp(out, 1);
}

// Runs `code`; reports are relative to its first byte. rbp and rsp survive by the longjmp.
#define FAULT(name, code)                                                                \
    do {                                                                                 \
        if (!sigsetjmp(out, 1)) {                                                        \
            printf("%-20s ", name);                                                      \
            fflush(stdout);                                                              \
            asm volatile("lea 77f(%%rip), %%rax; mov %%rax, %0; mov %1, %%rdi; 77: " code \
                         : "=m"(origin)                                                  \
                         : "m"(page)                                                     \
                         : "rax", "rbx", "rcx", "rdx", "rdi", "rsi", "xmm0", "xmm1", "memory", "cc"); \
            printf("no fault\n");                                                        \
        }                                                                                \
    } while (0)

int main(void) {
    handle_all_faults(report, SA_NODEFER);
    handle(SIGUSR1, report, SA_NODEFER);
    FAULT("divide by zero", "xor %%ecx,%%ecx; mov $1,%%eax; cltd; idiv %%ecx");
    FAULT("quotient overflow", "mov $1,%%ecx; mov $7,%%edx; xor %%eax,%%eax; div %%ecx");
    FAULT("ud2", "ud2");
    FAULT("lock nop", ".byte 0xf0,0x90");
    FAULT("into", ".byte 0xce");
    FAULT("int3", "int3");
    FAULT("int 3, two bytes", ".byte 0xcd,3");
    FAULT("int 4", "int $4");
    FAULT("int 1", ".byte 0xcd,1");
    FAULT("int 0x81", "int $0x81");
    FAULT("hlt", "hlt");
    FAULT("cli", "cli");
    FAULT("in", "in $0x60,%%al");
    FAULT("rdmsr", "rdmsr");
    FAULT("mov from cr0", "mov %%cr0,%%rax");
    FAULT("write to 0", "movl $1,0");
    FAULT("read from 0x18", "mov $0x18,%%eax; mov (%%rax),%%eax");
    FAULT("read, not canonical", "mov $1,%%rax; shl $62,%%rax; mov (%%rax),%%eax");
    FAULT("by rbp, not canonical", "push %%rbp; mov $1,%%rbp; shl $62,%%rbp; mov (%%rbp),%%eax");
    FAULT("kernel address", "mov $-4096,%%rax; mov (%%rax),%%eax");
    FAULT("movaps, misaligned", "lea -32(%%rsp),%%rax; and $-16,%%rax; movaps 1(%%rax),%%xmm0");
    FAULT("alignment check", "pushf; orl $0x40000,(%%rsp); popf; mov 1(%%rsp),%%ecx");
    FAULT("jump, not canonical", "mov $1,%%rax; shl $62,%%rax; jmp *%%rax");
    FAULT("ret, not canonical", "mov $1,%%rax; shl $62,%%rax; push %%rax; ret");
    page = 0x1000; // so that a jump to it is told as page+0
    FAULT("jump to unmapped", "jmp *%%rdi");
    page = (unsigned long)pages(2, PROT_READ | PROT_WRITE);
    memset((void *)page, 0xc3, 8192); // populated, so that the error code's present bit is sure
    FAULT("jump to data", "jmp *%%rdi");
    mprotect((void *)page, 8192, PROT_READ);
    FAULT("write to read-only", "movl $1,16(%%rdi)");
    FAULT("rmw of read-only", "lock incl 16(%%rdi)");
    FAULT("failing cmpxchg", "xor %%eax,%%eax; mov $1,%%ecx; dec %%eax; cmpxchg %%ecx,8(%%rdi)");
    mprotect((void *)(page + 4096), 4096, PROT_NONE);
    FAULT("read, no access", "mov 4104(%%rdi),%%eax");
    FAULT("read across the end", "mov 4092(%%rdi),%%rax");
    FAULT("vector across the end", "movups 4088(%%rdi),%%xmm0");
    FILE *empty = tmpfile();
    page = (unsigned long)mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(empty), 0);
    FAULT("read past a file", "mov 8(%%rdi),%%eax");
    FAULT("write past a file", "movb $1,4099(%%rdi)");
    FAULT("codes stay", "mov $39,%%eax; syscall; mov %%eax,%%edi; mov $10,%%esi; mov $62,%%eax; ud2");
    return 0;
}
