/* A 32-bit multiboot image: paging with 4 KiB and 4 MiB pages, demand paging, the timer's
 * interrupt through the 8259, a software interrupt. */
#include "io.h"

struct gate {
    u16 low, selector, flags, high;
};

static struct gate idt[256] __attribute__((aligned(8)));
static u32 directory[1024] __attribute__((aligned(4096)));
static u32 table[1024] __attribute__((aligned(4096)));
static u8 pool[16][4096] __attribute__((aligned(4096)));
static volatile u32 ticks, faults, calls;

extern void timer_entry(void), page_fault_entry(void), call_entry(void);

/* Where pages appear when they are touched. */
#define DEMAND 0x40000000u

static void set_gate(int vector, void (*entry)(void))
{
    u32 at = (u32)entry;
    idt[vector] = (struct gate){(u16)at, 8, 0x8e00, (u16)(at >> 16)};
}

void on_timer(void)
{
    ticks++;
    out8(0x20, 0x20);
}

void on_page_fault(u32 address, u32 error)
{
    if (address < DEMAND || address >= DEMAND + sizeof pool || (error & 1)) {
        put("unexpected page fault at ");
        put_hex(address);
        put("\n");
        debug_exit(1);
    }
    u32 page = (address - DEMAND) >> 12;
    table[page] = (u32)pool[page] | 3;
    faults++;
}

void on_call(u32 argument)
{
    calls += argument;
}

static void start_timer(void)
{
    static const u8 setup[][2] = {
        {0x20, 0x11}, {0x21, 0x20}, {0x21, 4}, {0x21, 1}, {0xa0, 0x11}, {0xa1, 0x28},
        {0xa1, 2}, {0xa1, 1}, {0x21, 0xfe}, {0xa1, 0xff},
    };
    for (unsigned i = 0; i < sizeof setup / sizeof *setup; i++) {
        out8(setup[i][0], setup[i][1]);
    }
    out8(0x43, 0x34);
    /* 1 kHz. */
    out8(0x40, 1193 & 0xff);
    out8(0x40, 1193 >> 8);
}

void main(u32 magic, u32 info)
{
    put("magic ");
    put_hex(magic);
    put("\n");
    put("command line: ");
    put((const char *)((u32 *)info)[4]);
    put("\n");

    set_gate(0x20, timer_entry);
    set_gate(14, page_fault_entry);
    set_gate(0x80, call_entry);
    struct {
        u16 limit;
        u32 base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (u32)idt};
    __asm__ volatile("lidt %0" : : "m"(pointer));

    /* The low 16 MiB to themselves. */
    for (u32 i = 0; i < 4; i++) {
        directory[i] = i << 22 | 0x83;
    }
    directory[DEMAND >> 22] = (u32)table | 3;
    __asm__ volatile("mov %%cr4, %%eax; or $0x10, %%eax; mov %%eax, %%cr4;"
                     "mov %0, %%cr3; mov %%cr0, %%eax; or $0x80010000, %%eax; mov %%eax, %%cr0"
                     : : "r"(directory) : "eax", "memory");
    put("paging is on\n");

    volatile u32 *demand = (volatile u32 *)DEMAND;
    u32 sum = 0;
    for (u32 i = 0; i < sizeof pool / 4; i += 512) {
        demand[i] = i;
        sum += demand[i];
    }
    put("faults ");
    put_hex(faults);
    put(", sum ");
    put_hex(sum);
    put("\n");

    __asm__ volatile("int $0x80" : : "a"(5) : "memory", "ecx", "edx");
    __asm__ volatile("int $0x80" : : "a"(7) : "memory", "ecx", "edx");
    put("calls ");
    put_hex(calls);
    put("\n");

    start_timer();
    __asm__ volatile("sti");
    while (ticks < 5) {
        __asm__ volatile("hlt");
    }
    __asm__ volatile("cli");
    put("the timer ticks\n");
    power_off();
}
