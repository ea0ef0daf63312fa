/* Ports and the serial line, for guests of either width. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

static inline void out8(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out16(u16 port, u16 value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void put_char(char c)
{
    while (!(in8(0x3fd) & 0x20)) {
    }
    out8(0x3f8, (u8)c);
}

static inline void put(const char *text)
{
    while (*text) {
        put_char(*text++);
    }
}

static inline void put_hex(u64 value)
{
    put("0x");
    int shift = 60;
    while (shift > 0 && !(value >> shift)) {
        shift -= 4;
    }
    for (; shift >= 0; shift -= 4) {
        put_char("0123456789abcdef"[value >> shift & 15]);
    }
}

/* Ends the machine with exit status 2 * code + 1. */
static inline void debug_exit(u8 code)
{
    for (;;) {
        out8(0xf4, code);
    }
}

static inline void power_off(void)
{
    for (;;) {
        out16(0x604, 0x2000);
    }
}
