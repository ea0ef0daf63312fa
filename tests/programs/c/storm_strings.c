// flags: -O1 -mno-red-zone
// A storm over string instructions, upwards and downwards: RCX, RSI and RDI tell how far
// they came, all before is done and nothing behind; the handler does a part of the work
// itself and moves the registers on.
#include "storm.h"

extern char movs_up[], movs_down[], stos_at[], cmps_at[], scas_at[];
enum { SIZE = 1 << 16 };
static unsigned char from[SIZE + 64], to[SIZE + 64];
static volatile long inside, helped;

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    taken++;
    char *rip = (char *)REG(uc, RIP);
    unsigned long left = REG(uc, RCX), rdi = REG(uc, RDI), rsi = REG(uc, RSI);
    unsigned long take = left > 1 ? next_random() % left / 2 : 0;
    int helps = next_random() % 4 == 0 && take;
    if (rip == movs_up) {
        unsigned long done = SIZE - left;
        inside++;
        if (rsi - (unsigned long)from != done || rdi - (unsigned long)to != done)
            complain("movsb", left, rsi - (unsigned long)from, rdi - (unsigned long)to);
        if (done && memcmp(from, to, done))
            complain("movsb: not all is done", done, 0, 0);
        if (left && to[done] != 0)
            complain("movsb: too much is done", done, to[done], 0);
        if (helps) {
            helped++;
            memcpy(to + done, from + done, take);
            REG(uc, RCX) -= take, REG(uc, RSI) += take, REG(uc, RDI) += take;
        }
    } else if (rip == movs_down) {
        inside++;
        // Quadwords from the top; the registers name the next.
        if (rsi != (unsigned long)from + 8 * left - 8 || rdi != (unsigned long)to + 8 * left - 8)
            complain("std movsq", left, rsi - (unsigned long)from, rdi - (unsigned long)to);
        if (!(REG(uc, EFL) & 0x400))
            complain("direction", REG(uc, EFL), 0, 0);
        if (memcmp(from + 8 * left, to + 8 * left, SIZE - 8 * left))
            complain("std movsq: not all is done", left, 0, 0);
    } else if (rip == stos_at) {
        inside++;
        if (rdi != (unsigned long)to + 4 * (SIZE / 4 - left))
            complain("stosd", left, rdi - (unsigned long)to, 0);
        if (helps) {
            helped++;
            for (unsigned long i = 0; i < take; i++)
                memcpy((char *)rdi + 4 * i, &REG(uc, RAX), 4);
            REG(uc, RCX) -= take, REG(uc, RDI) += 4 * take;
        }
    } else if (rip == cmps_at) {
        inside++;
        if (rdi - (unsigned long)to != SIZE - left || rsi - (unsigned long)from != SIZE - left)
            complain("cmpsb", left, rsi - (unsigned long)from, rdi - (unsigned long)to);
    } else if (rip == scas_at) {
        inside++;
        if (rdi - (unsigned long)to != SIZE - left)
            complain("scasb", left, rdi - (unsigned long)to, 0);
        if (helps && left > take + 50)
            helped++, REG(uc, RCX) -= take, REG(uc, RDI) += take;
    }
    shoot(info->si_value.sival_int);
}

int main(int argc, char **argv) {
    handle(SIGALRM, tick, SA_RESTART);
    handle(SIGRTMIN + 1, tick, SA_RESTART);
    storm_prepare(SIGALRM, SIGRTMIN + 1);
    for (int i = 0; i < SIZE; i++)
        from[i] = (unsigned char)(i * 7 + i / 256) | 1;
    storm_begin(storm_size(argc, argv, 1));
    while (taken < wanted) {
        void *d = to, *s = from;
        long c = SIZE, left;
        memset(to, 0, SIZE);
        asm volatile("movs_up: rep movsb" : "+D"(d), "+S"(s), "+c"(c) : : "memory", "cc");
        CHECK(c == 0 && memcmp(from, to, SIZE) == 0);
        memset(to, 0, SIZE);
        d = to + SIZE - 8, s = from + SIZE - 8, c = SIZE / 8;
        asm volatile("std; movs_down: rep movsq; cld" : "+D"(d), "+S"(s), "+c"(c) : : "memory", "cc");
        CHECK(c == 0 && memcmp(from, to, SIZE) == 0);
        from[SIZE - 100] ^= 4;
        d = to, s = from, c = SIZE;
        asm volatile("cmp %%rax,%%rax; cmps_at: repe cmpsb"
                     : "+D"(d), "+S"(s), "+c"(c) : : "memory", "cc");
        CHECK(c == 99);
        from[SIZE - 100] ^= 4;
        d = to, c = SIZE / 4, left = 0;
        asm volatile("stos_at: rep stosl" : "+D"(d), "+c"(c) : "a"(0x01020304) : "memory", "cc");
        for (int i = 0; i < SIZE / 4; i++)
            CHECK(((int *)to)[i] == 0x01020304);
        to[SIZE - 50] = 9;
        d = to, c = SIZE;
        asm volatile("cmp %%rax,%%rbx; scas_at: repne scasb"
                     : "+D"(d), "+c"(c) : "a"(9) : "memory", "cc");
        CHECK(c == 49);
        (void)left;
    }
    storm_over();
    printf("some inside %d\n", inside > 0);
    return 0;
}
