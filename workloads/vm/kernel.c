/* A small 64-bit kernel: two preempted tasks in ring 3, system calls, demand paging, the
 * local APIC's timer, and code that changes itself. With SYSCALL it uses SYSCALL and SYSRET;
 * without, UD2 is its system call, which works wherever exceptions do. */
#include "long.h"

enum { SYS_TICKS, SYS_REPORT, SYS_EXIT };

#define LAPIC 0xfee00000ull
#define TIMER 0x30
#define STACKS (USER_BASE + 0x100000)
#define HEAPS (USER_BASE + 0x180000)
#define HEAP_BYTES 0x10000ull

static volatile u64 ticks, switches, faults;
static u64 reports[2];
static int finished[2];
static struct frame tasks[2];
static int current;
static u8 pages[64][4096] __attribute__((aligned(4096)));
static u64 pages_used;

static void apic_write(u32 offset, u32 value)
{
    *(volatile u32 *)(LAPIC + offset) = value;
}

/* What a task does; runs in ring 3 and knows only registers and its own memory. */
static inline __attribute__((always_inline)) u64 system_call(u64 number, u64 argument)
{
    u64 result;
#ifdef SYSCALL
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(argument)
                     : "rcx", "r11", "memory");
#else
    __asm__ volatile("ud2" : "=a"(result) : "a"(number), "D"(argument) : "memory");
#endif
    return result;
}

__attribute__((section(".user"), noreturn)) void task(u64 heap, u64 seed)
{
    volatile u64 *words = (volatile u64 *)heap;
    u64 sum = seed;
    for (u64 round = 0; round < 20; round++) {
        for (u64 i = 0; i < HEAP_BYTES / 8; i += 64) {
            words[i] = words[i] * 6364136223846793005ull + sum + i;
            sum ^= words[i] >> 7;
        }
    }
    while (system_call(SYS_TICKS, 0) < 6) {
    }
    system_call(SYS_REPORT, sum);
    system_call(SYS_EXIT, 0);
    for (;;) {
    }
}

static void fail(const char *what, struct frame *frame)
{
    put("unexpected ");
    put(what);
    put(": vector ");
    put_hex(frame->vector);
    put(" error ");
    put_hex(frame->error);
    put(" rip ");
    put_hex(frame->rip);
    put(" cr2 ");
    put_hex(read_cr2());
    put("\n");
    debug_exit(1);
}

static void finish(void)
{
    for (int i = 0; i < 2; i++) {
        put("task ");
        put_char((char)('0' + i));
        put(" sum ");
        put_hex(reports[i]);
        put("\n");
    }
    put("pages ");
    put_hex(faults);
    put(switches ? ", preempted\n" : ", never preempted\n");
    power_off();
}

static void switch_to(struct frame *frame, int next)
{
    *frame = tasks[next];
    current = next;
    /* Not by SYSRET: the other task may have been interrupted anywhere. */
    if (frame->vector == 256) {
        frame->vector = 0;
    }
}

static void serve(struct frame *frame)
{
    switch (frame->rax) {
    case SYS_TICKS:
        /* A device access, so that time passes where it is counted by them. */
        in8(0x80);
        frame->rax = ticks;
        break;
    case SYS_REPORT:
        reports[current] = frame->rdi;
        break;
    case SYS_EXIT:
        finished[current] = 1;
        if (finished[1 - current]) {
            finish();
        }
        switch_to(frame, 1 - current);
        break;
    default:
        fail("system call", frame);
    }
}

static void give_page(struct frame *frame)
{
    u64 address = read_cr2() & ~4095ull;
    int inside = address >= STACKS && address < HEAPS + 2 * HEAP_BYTES;
    if (!inside || (frame->error & 1) || pages_used == sizeof pages / 4096) {
        fail("page fault", frame);
    }
    user_pt[(address - USER_BASE) >> 12] =
        (u64)pages[pages_used++] | PRESENT | WRITABLE | USER | NO_EXECUTE;
    faults++;
}

void on_trap(struct frame *frame)
{
    switch (frame->vector) {
    case 256:
        serve(frame);
        break;
#ifndef SYSCALL
    case 6:
        if (!(frame->cs & 3)) {
            fail("trap", frame);
        }
        /* Done, as if it were an instruction: a debugger may see the next one. */
        frame->rip += 2;
        frame->rflags &= ~0x10000ull;
        serve(frame);
        break;
#endif
    case 14:
        give_page(frame);
        break;
    case TIMER:
        ticks++;
        apic_write(0xb0, 0);
        if ((frame->cs & 3) && !finished[1 - current]) {
            tasks[current] = *frame;
            switch_to(frame, 1 - current);
            switches++;
        }
        break;
    default:
        fail("trap", frame);
    }
}

/* Writes `mov $value, %eax; ret` again and again, and calls it. */
static u64 change_own_code(void)
{
    static u8 code[4096] __attribute__((aligned(4096)));
    u64 sum = 0;
    for (u32 value = 1; value <= 100; value++) {
        volatile u8 *byte = code;
        byte[0] = 0xb8;
        byte[1] = (u8)value;
        byte[2] = (u8)(value >> 8);
        byte[3] = 0;
        byte[4] = 0;
        byte[5] = 0xc3;
        sum += ((u32 (*)(void))code)();
    }
    return sum;
}

void main(void)
{
    put("64 bits\n");
    set_up();
    put("self-modified sum ");
    put_hex(change_own_code());
    put("\n");
#ifdef SYSCALL
    write_msr(0xc0000081, (u64)KERNEL_CS << 32 | (u64)KERNEL_SS << 48);
    write_msr(0xc0000082, (u64)syscall_entry);
    write_msr(0xc0000084, 0x47700);
#endif
    for (int i = 0; i < 2; i++) {
        tasks[i] = (struct frame){
            .rip = user_address((void *)task),
            .cs = USER_CS,
            .rflags = 0x202,
            .rsp = STACKS + 0x10000 * (u64)(i + 1) - 8,
            .ss = USER_SS,
            .rdi = HEAPS + HEAP_BYTES * (u64)i,
            .rsi = 1000 + (u64)i,
        };
    }
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    apic_write(0xf0, 0x1ff);
    apic_write(0x3e0, 0xb);
    apic_write(0x320, 0x20000 | TIMER);
    /* A kHz. */
    apic_write(0x380, 1000000);
    put("entering ring 3\n");
    struct frame first = tasks[0];
    enter(&first);
}
