/* Checks each exception and privilege rule, one line each: "ok NAME" or "FAIL NAME: ...".
 * The command line "integer" leaves out what needs more than integer instructions. */
#include "long.h"

#define NONE 0xffff

static volatile struct {
    u64 vector, error, cr2, rip_after;
} caught;
static u64 recovery, recovery_stack;
static u32 passed, failed;
static u8 user_stack[4096] __attribute__((aligned(4096)));
static u8 data_page[4096] __attribute__((aligned(4096)));
static u8 other_stack[4096] __attribute__((aligned(16)));

void resume(void) __attribute__((noreturn));

/* Where ring 3 comes back: behind the call of run_user. */
__asm__("resume: mov kernel_stack(%rip), %rsp; pop %r15; pop %r14; pop %r13; pop %r12;"
        "pop %rbp; pop %rbx; ret");
u64 kernel_stack;

/* Ring 3 at `rip`, on the stack at USER_BASE + 0x110000, with interrupts off. */
void run_user(u64 rip);
__asm__("run_user: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15;"
        "mov %rsp, kernel_stack(%rip);"
        "push $0x1b; push $0x40110ff0; push $2; push $0x23; push %rdi; iretq");

void on_trap(struct frame *frame)
{
    caught.vector = frame->vector;
    caught.error = frame->error;
    caught.cr2 = read_cr2();
    caught.rip_after = frame->rip;
    if (frame->cs & 3) {
        /* From ring 3: back to who called run_user. */
        resume();
    }
    if (!recovery) {
        put("FAIL unexpected trap: vector ");
        put_hex(frame->vector);
        put(" error ");
        put_hex(frame->error);
        put(" rip ");
        put_hex(frame->rip);
        put("\n");
        debug_exit(2);
    }
    frame->rip = recovery;
    frame->rsp = recovery_stack;
    frame->ss = 0x10;
    frame->rflags &= ~0x100ull;
    recovery = 0;
}

static void check(const char *name, u64 vector, u64 error)
{
    if (caught.vector == vector && caught.error == error) {
        passed++;
        put("ok ");
        put(name);
        put("\n");
        return;
    }
    failed++;
    put("FAIL ");
    put(name);
    put(": vector ");
    put_hex(caught.vector);
    put(" error ");
    put_hex(caught.error);
    put(" cr2 ");
    put_hex(caught.cr2);
    put("\n");
}

static void check_true(const char *name, int holds)
{
    caught.vector = holds ? NONE : 0;
    caught.error = 0;
    check(name, NONE, 0);
}

/* Runs an instruction in ring 0; a trap goes on behind it. */
#define TRY(text, ...)                                                                     \
    do {                                                                                   \
        caught.vector = NONE;                                                              \
        caught.error = 0;                                                                  \
        __asm__ volatile("lea 1f(%%rip), %%r11; mov %%r11, %0; mov %%rsp, %1; " text       \
                         "; 1: movq $0, %0"                                                \
                         : "+m"(recovery), "+m"(recovery_stack)                            \
                         : __VA_ARGS__                                                     \
                         : "rax", "rcx", "rdx", "r10", "r11", "memory", "cc");             \
    } while (0)

/* Pieces of ring-3 code: each ends with UD2, which traps if nothing before did. */
#define PIECE(name, text)                                                                  \
    __asm__(".section .user, \"ax\"; " #name ": " text "; ud2; .text");                    \
    extern const char name[]

PIECE(p_hlt, "hlt");
PIECE(p_cli, "cli");
PIECE(p_sti, "sti");
PIECE(p_in, "in $0x21, %al");
PIECE(p_in_allowed, "in $0x80, %al");
PIECE(p_out, "out %al, $0x21");
PIECE(p_rdmsr, "mov $0xc0000080, %ecx; rdmsr");
PIECE(p_wrmsr, "mov $0xc0000080, %ecx; wrmsr");
PIECE(p_cr0, "mov %cr0, %rax");
PIECE(p_cr3, "mov %rax, %cr3");
PIECE(p_dr7, "mov %dr7, %rax");
PIECE(p_clts, "clts");
PIECE(p_lmsw, "lmsw %ax");
PIECE(p_invlpg, "invlpg (%rsp)");
PIECE(p_wbinvd, "wbinvd");
PIECE(p_lgdt, "lgdt (%rsp)");
PIECE(p_lidt, "lidt (%rsp)");
PIECE(p_ltr, "ltr %ax");
PIECE(p_swapgs, "swapgs");
PIECE(p_sysret, "sysretq");
PIECE(p_int_closed, "int $0x42");
PIECE(p_int_open, "int $0x43");
PIECE(p_int3, "int3");
PIECE(p_kernel_read, "mov 0x100000, %eax");
PIECE(p_kernel_write, "mov %eax, 0x100000");
PIECE(p_own_code_write, "lea p_own_code_write(%rip), %rcx; mov %eax, (%rcx)");
PIECE(p_stack_exec, "movb $0xc3, (%rsp); jmp *%rsp");
PIECE(p_missing, "mov 0x40150000, %eax");
PIECE(p_ring0_selector, "mov $0x10, %eax; mov %eax, %ds");
PIECE(p_noncanonical, "mov $0x8000000000000000, %rax; mov (%rax), %eax");
PIECE(p_noncanonical_stack, "mov $0x8000000000000000, %rsp; push %rax");
PIECE(p_unaligned, "pushf; orl $0x40000, (%rsp); popf; mov 1(%rsp), %eax");
PIECE(p_step, "pushf; orl $0x100, (%rsp); popf; nop");
PIECE(p_popf_keeps_if, "pushf; orl $0x200, (%rsp); popf; pushf; pop %rax; test $0x200, %eax;"
                       "jz 1f; hlt; 1:");
PIECE(p_fault_in_kernel_jump, "mov $0x100000, %eax; jmp *%rax");

static void user(const char *name, const char *piece, u64 vector, u64 error)
{
    caught.vector = NONE;
    run_user(user_address(piece));
    check(name, vector, error);
}

static void ring_3(int integer)
{
    user("HLT in ring 3", p_hlt, 13, 0);
    user("CLI in ring 3", p_cli, 13, 0);
    user("STI in ring 3", p_sti, 13, 0);
    user("IN of a closed port", p_in, 13, 0);
    user("IN of a port that the task may use", p_in_allowed, 6, 0);
    user("OUT to a closed port", p_out, 13, 0);
    user("RDMSR in ring 3", p_rdmsr, 13, 0);
    user("WRMSR in ring 3", p_wrmsr, 13, 0);
    user("MOV from CR0 in ring 3", p_cr0, 13, 0);
    user("MOV to CR3 in ring 3", p_cr3, 13, 0);
    user("MOV from DR7 in ring 3", p_dr7, 13, 0);
    user("CLTS in ring 3", p_clts, 13, 0);
    user("LMSW in ring 3", p_lmsw, 13, 0);
    user("INVLPG in ring 3", p_invlpg, 13, 0);
    user("WBINVD in ring 3", p_wbinvd, 13, 0);
    user("LGDT in ring 3", p_lgdt, 13, 0);
    user("LIDT in ring 3", p_lidt, 13, 0);
    user("LTR in ring 3", p_ltr, 13, 0);
    user("SWAPGS in ring 3", p_swapgs, 13, 0);
    user("SYSRET in ring 3", p_sysret, 13, 0);
    if (!integer) {
        user("INT to a closed gate", p_int_closed, 13, 0x42 * 8 + 2);
        user("INT to an open gate", p_int_open, 0x43, 0);
        user("INT3 in ring 3", p_int3, 3, 0);
    }
    user("ring 3 reads the kernel", p_kernel_read, 14, 5);
    user("ring 3 writes the kernel", p_kernel_write, 14, 7);
    user("ring 3 jumps into the kernel", p_fault_in_kernel_jump, 14, 0x15);
    user("ring 3 writes its own code", p_own_code_write, 14, 7);
    user("ring 3 executes its stack", p_stack_exec, 14, 0x15);
    user("ring 3 touches a missing page", p_missing, 14, 4);
    check_true("CR2 is the address", caught.cr2 == 0x40150000);
    user("ring 3 loads a selector of ring 0", p_ring0_selector, 13, 0x10);
    user("a non-canonical address", p_noncanonical, 13, 0);
    user("a non-canonical stack", p_noncanonical_stack, 12, 0);
    u64 cr0;
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0 | 1 << 18));
    user("alignment is checked in ring 3", p_unaligned, 17, 0);
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0));
    user("alignment isn't checked without CR0.AM", p_unaligned, 6, 0);
    user("a single step", p_step, 1, 0);
    user("POPF leaves IF alone in ring 3", p_popf_keeps_if, 6, 0);
}

static void ring_0(int integer)
{
    TRY("xor %%edx, %%edx; xor %%ecx, %%ecx; div %%ecx", "m"(data_page));
    check("a division by zero", 0, 0);
    TRY("mov $1, %%edx; mov $1, %%ecx; div %%ecx", "m"(data_page));
    check("a quotient that doesn't fit", 0, 0);
    TRY("ud2", "m"(data_page));
    check("UD2", 6, 0);
    TRY("nop", "m"(data_page));
    check("no exception", NONE, 0);
    if (!integer) {
        TRY("int3", "m"(data_page));
        check("INT3", 3, 0);
        TRY("int $0x42", "m"(data_page));
        check("INT n", 0x42, 0);
        TRY("mov %%cr0, %%rax; or $8, %%rax; mov %%rax, %%cr0; fwait; fnop", "m"(data_page));
        check("x87 with CR0.TS", 7, 0);
        TRY("movaps %%xmm0, %%xmm0; movd %%xmm0, %%eax", "m"(data_page));
        check("SSE with CR0.TS", 7, 0);
        __asm__ volatile("clts");
        TRY("mov %%cr4, %%rax; and $~0x200, %%rax; mov %%rax, %%cr4; addps %%xmm0, %%xmm0",
            "m"(data_page));
        check("SSE without CR4.OSFXSR", 6, 0);
        __asm__ volatile("mov %%cr4, %%rax; or $0x200, %%rax; mov %%rax, %%cr4" : : : "rax");
    }
    TRY("mov $0x8000000000000000, %%rax; mov (%%rax), %%eax", "m"(data_page));
    check("a non-canonical read", 13, 0);
    TRY("mov $0x999, %%ecx; rdmsr", "m"(data_page));
    check("RDMSR of nothing", 13, 0);
    TRY("mov $0xc0000080, %%ecx; mov $-1, %%eax; mov %%eax, %%edx; wrmsr", "m"(data_page));
    check("WRMSR with reserved bits", 13, 0);
    TRY("mov %%cr4, %%rax; mov $1, %%ecx; shl $63, %%rcx; or %%rcx, %%rax; mov %%rax, %%cr4",
        "m"(data_page));
    check("CR4 with reserved bits", 13, 0);
    TRY("mov %%cr0, %%rax; and $~1, %%eax; mov %%rax, %%cr0", "m"(data_page));
    check("paging without protection", 13, 0);
    TRY("mov %%cr4, %%rax; and $~0x20, %%rax; mov %%rax, %%cr4", "m"(data_page));
    check("long mode without PAE", 13, 0);
    TRY("mov $0x1000, %%eax; mov %%eax, %%ds", "m"(data_page));
    check("a selector beyond the table", 13, 0x1000);
    TRY("mov $0x38, %%eax; mov %%eax, %%es", "m"(data_page));
    check("a segment that isn't present", 11, 0x38);
    TRY("mov $0x38, %%eax; mov %%eax, %%ss", "m"(data_page));
    check("a stack segment that isn't present", 12, 0x38);
    TRY("mov $0x8, %%eax; mov %%eax, %%ss", "m"(data_page));
    check("code as a stack segment", 13, 8);
    TRY("mov $0x28, %%eax; ltr %%ax", "m"(data_page));
    check("LTR of a busy task", 13, 0x28);
    TRY("mov $0x10, %%eax; lldt %%ax", "m"(data_page));
    check("LLDT of something else", 13, 0x10);
    TRY("push $0x10; push $0x10; lretq", "m"(data_page));
    check("a far return into data", 13, 0x10);
}

static void paging(void)
{
    u64 at = (u64)data_page;
    TRY("mov 0x50000000, %%eax", "m"(data_page));
    check("a read of a missing page", 14, 0);
    TRY("movl $1, 0x50000000", "m"(data_page));
    check("a write to a missing page", 14, 2);
    check_true("CR2 is set in ring 0", caught.cr2 == 0x50000000);
    /* A page of ring 3's, seen by the kernel. */
    u64 *entry = &user_pt[0x160];
    u64 address = USER_BASE + 0x160000;
    *entry = at | PRESENT;
    flush_page(address);
    TRY("mov (%2), %%eax", "r"(address));
    check("a read of a read-only page", NONE, 0);
    TRY("movl $1, (%2)", "r"(address));
    check("a write to a read-only page", 14, 3);
    __asm__ volatile("mov %%cr0, %%rax; and $~0x10000, %%rax; mov %%rax, %%cr0" : : : "rax");
    TRY("movl $1, (%2)", "r"(address));
    check("a write to a read-only page without CR0.WP", NONE, 0);
    __asm__ volatile("mov %%cr0, %%rax; or $0x10000, %%rax; mov %%rax, %%cr0" : : : "rax");
    *entry = at | PRESENT | WRITABLE | NO_EXECUTE;
    flush_page(address);
    check_true("the page isn't accessed yet", !(*entry & 0x60));
    TRY("mov (%2), %%eax", "r"(address));
    check_true("a read sets the accessed bit alone", (*entry & 0x60) == 0x20);
    TRY("movl $1, (%2)", "r"(address));
    check_true("a write sets the dirty bit", (*entry & 0x60) == 0x60);
    data_page[0] = 0xc3;
    TRY("call *%2", "r"(address));
    check("executing a page that may not be", 14, 0x11);
    *entry = at | PRESENT | WRITABLE | 1ull << 51;
    flush_page(address);
    TRY("mov (%2), %%eax", "r"(address));
    check("a reserved bit in an entry", 14, 9);
    *entry = at | PRESENT | WRITABLE;
    flush_page(address);
    TRY("call *%2", "r"(address));
    check("executing a page that may be", NONE, 0);

    u32 a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    *entry = at | PRESENT | WRITABLE | USER;
    flush_page(address);
    if (b & 1 << 7) {
        __asm__ volatile("mov %%cr4, %%rax; or $0x100000, %%rax; mov %%rax, %%cr4" : : : "rax");
        TRY("call *%2", "r"(address));
        check("SMEP: the kernel executes ring 3's page", 14, 0x11);
        __asm__ volatile("mov %%cr4, %%rax; and $~0x100000, %%rax; mov %%rax, %%cr4" : : : "rax");
    }
    if (b & 1 << 20) {
        __asm__ volatile("mov %%cr4, %%rax; or $0x200000, %%rax; mov %%rax, %%cr4" : : : "rax");
        TRY("mov (%2), %%eax", "r"(address));
        check("SMAP: the kernel reads ring 3's page", 14, 1);
        TRY("pushf; orl $0x40000, (%%rsp); popf; mov (%2), %%eax;"
            "pushf; andl $~0x40000, (%%rsp); popf", "r"(address));
        check("SMAP with RFLAGS.AC", NONE, 0);
        __asm__ volatile("mov %%cr4, %%rax; and $~0x200000, %%rax; mov %%rax, %%cr4" : : : "rax");
    }
    *entry = 0;
    flush_page(address);
}

static void stacks(void)
{
    /* A page fault on a stack of its own. */
    task_state.ist[0] = (u64)other_stack + sizeof other_stack;
    set_gate(14, stubs[14], 0x8e, 1);
    TRY("mov 0x50000000, %%eax", "m"(data_page));
    check("a page fault on an interrupt stack", 14, 0);
    /* Without a usable stack, delivery needs the interrupt stack. */
    set_gate(8, stubs[8], 0x8e, 1);
    set_gate(14, stubs[14], 0x8e, 0);
    TRY("mov $0x50001000, %%rsp; mov 0x50000000, %%eax", "m"(data_page));
    check("a double fault", 8, 0);
    set_gate(8, stubs[8], 0x8e, 0);
    /* A gate that isn't present. */
    set_gate(6, stubs[6], 0x0e, 0);
    TRY("ud2", "m"(data_page));
    /* EXT: an exception led here. Emulators leave it out. */
    caught.error |= 1;
    check("a gate that isn't present", 11, 6 * 8 + 3);
    set_gate(6, stubs[6], 0x8e, 0);
}

struct start_info {
    u32 magic, version, flags, modules;
    u64 module_list, command_line;
};

void main(const struct start_info *info)
{
    int integer = *(const char *)info->command_line == 'i';
    set_up();
    set_gate(0x43, stubs[0x43], 0xee, 0);
    set_gate(3, stubs[3], 0xee, 0);
    /* Descriptor 7: data that isn't present. */
    gdt[7] = 0x00cf13000000ffff;
    user_pt[0x110] = (u64)user_stack | PRESENT | WRITABLE | USER | NO_EXECUTE;
    task_state.io_bits[0x80 / 8] &= (u8)~1;
    ring_0(integer);
    paging();
    stacks();
    ring_3(integer);
    put_hex(passed);
    put(" passed, ");
    put_hex(failed);
    put(" failed\n");
    if (failed) {
        debug_exit(1);
    }
    power_off();
}
