/* Keeps a CPU busy in ring 0: a sieve, a hash, sorting, and with VECTOR floating point. The
 * command line holds how often. */
#include "io.h"

#define PRIMES 20000
#define ITEMS 2000

static u8 composite[PRIMES];
static u32 items[ITEMS];

static u64 sieve(void)
{
    u64 count = 0;
    for (u32 i = 0; i < PRIMES; i++) {
        composite[i] = 0;
    }
    for (u32 i = 2; i < PRIMES; i++) {
        if (!composite[i]) {
            count++;
            for (u32 j = i * 2; j < PRIMES; j += i) {
                composite[j] = 1;
            }
        }
    }
    return count;
}

static u64 hash(u64 seed)
{
    u64 value = seed ^ 0xcbf29ce484222325ull;
    for (u32 i = 0; i < 20000; i++) {
        value = (value ^ (i & 0xff)) * 0x100000001b3ull;
    }
    return value;
}

static u64 sort(u32 seed)
{
    for (u32 i = 0; i < ITEMS; i++) {
        seed = seed * 1103515245 + 12345;
        items[i] = seed >> 8;
    }
    for (u32 gap = ITEMS / 2; gap; gap /= 2) {
        for (u32 i = gap; i < ITEMS; i++) {
            u32 item = items[i], j = i;
            for (; j >= gap && items[j - gap] > item; j -= gap) {
                items[j] = items[j - gap];
            }
            items[j] = item;
        }
    }
    return items[ITEMS / 2];
}

#ifdef VECTOR
static u64 floating(void)
{
    double x = 1.0, sum = 0.0;
    for (u32 i = 1; i < 20000; i++) {
        x = x * 0.999 + 1.0 / i;
        sum += x;
    }
    return (u64)(sum * 1000.0);
}
#endif

static u32 rounds(const char *text)
{
    u32 value = 0;
    while (*text >= '0' && *text <= '9') {
        value = value * 10 + (u32)(*text++ - '0');
    }
    return value ? value : 3;
}

struct start_info {
    u32 magic, version, flags, modules;
    u64 module_list, command_line;
};

void main(const struct start_info *info)
{
    u64 sum = 0;
    u32 count = rounds((const char *)info->command_line);
    for (u32 round = 0; round < count; round++) {
        sum = sum * 31 + sieve() + hash(round) + sort(round);
#ifdef VECTOR
        sum += floating();
#endif
    }
    put("rounds ");
    put_hex(count);
    put(", sum ");
    put_hex(sum);
    put("\n");
    power_off();
}
