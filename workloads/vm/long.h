/* What 64-bit images share: traps, descriptors, pages. */
#pragma once

#include "io.h"

struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

#define KERNEL_CS 0x08
#define KERNEL_SS 0x10
#define USER_SS 0x1b
#define USER_CS 0x23
#define TASK 0x28

#define PRESENT 1ull
#define WRITABLE 2ull
#define USER 4ull
#define NO_EXECUTE (1ull << 63)

extern u64 gdt[], boot_pml4[], boot_pdpt[];
extern const u64 stubs[256];
extern char trap_stack[], user_start[], user_end[], image_end[];
extern void syscall_entry(void), enter(struct frame *) __attribute__((noreturn));

struct idt_entry {
    u16 low, selector;
    u8 stack, flags;
    u16 middle;
    u32 high, reserved;
};

struct task_state {
    u32 reserved;
    u64 rsp[3], reserved2, ist[7], reserved3;
    u16 reserved4, io_map;
    u8 io_bits[128];
    u8 end;
} __attribute__((packed));

static struct idt_entry idt[256] __attribute__((aligned(16)));
static struct task_state task_state;
static u64 user_pd[512] __attribute__((aligned(4096)));
static u64 user_pt[512] __attribute__((aligned(4096)));

/* Ring 3 lives from 1 GiB on. */
#define USER_BASE 0x40000000ull

static inline u64 read_cr2(void)
{
    u64 value;
    __asm__ volatile("mov %%cr2, %0" : "=r"(value));
    return value;
}

static inline void write_msr(u32 index, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)));
}

static inline void flush_page(u64 address)
{
    __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static inline void set_gate(int vector, u64 entry, u8 flags, u8 stack)
{
    idt[vector] = (struct idt_entry){
        (u16)entry, KERNEL_CS, stack, flags, (u16)(entry >> 16), (u32)(entry >> 32), 0,
    };
}

/* Descriptor tables, the task's stack, and an address space with room for ring 3. */
static inline void set_up(void)
{
    for (int vector = 0; vector < 256; vector++) {
        set_gate(vector, stubs[vector], 0x8e, 0);
    }
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (u64)idt};
    __asm__ volatile("lidt %0" : : "m"(pointer));

    task_state.rsp[0] = (u64)trap_stack;
    task_state.io_map = __builtin_offsetof(struct task_state, io_bits);
    for (unsigned i = 0; i < sizeof task_state.io_bits; i++) {
        task_state.io_bits[i] = 0xff;
    }
    task_state.end = 0xff;
    u64 base = (u64)&task_state;
    gdt[TASK / 8] = (sizeof task_state - 1) | (base & 0xffffff) << 16 | 0x89ull << 40
        | (base >> 24 & 0xff) << 56;
    gdt[TASK / 8 + 1] = base >> 32;
    __asm__ volatile("ltr %w0" : : "r"(TASK));

    boot_pml4[0] |= USER;
    boot_pdpt[1] = (u64)user_pd | PRESENT | WRITABLE | USER;
    user_pd[0] = (u64)user_pt | PRESENT | WRITABLE | USER;
    /* The user's code, not writable. */
    u64 pages = (u64)(user_end - user_start) / 4096;
    for (u64 page = 0; page < pages; page++) {
        user_pt[page] = ((u64)user_start + page * 4096) | PRESENT | USER;
    }
}

/* Where a function of section .user is in ring 3's addresses. */
static inline u64 user_address(const void *function)
{
    return USER_BASE + (u64)((const char *)function - user_start);
}
