// flags: -O2
// Indirect calls and a computed-goto interpreter with hundreds of targets, monomorphic and
// polymorphic sites, and function pointers that change while hot.
#include <stdio.h>

#define ONE(n) static __attribute__((noinline)) unsigned f##n(unsigned x) { return x * 3 + 0x##n; }
#define ROW(r) ONE(r##0) ONE(r##1) ONE(r##2) ONE(r##3) ONE(r##4) ONE(r##5) ONE(r##6) ONE(r##7) \
               ONE(r##8) ONE(r##9) ONE(r##a) ONE(r##b) ONE(r##c) ONE(r##d) ONE(r##e) ONE(r##f)
ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7) ROW(8) ROW(9) ROW(a) ROW(b) ROW(c) ROW(d) ROW(e) ROW(f)
#define NAME(r) f##r##0, f##r##1, f##r##2, f##r##3, f##r##4, f##r##5, f##r##6, f##r##7, \
                f##r##8, f##r##9, f##r##a, f##r##b, f##r##c, f##r##d, f##r##e, f##r##f
static unsigned (*const table[256])(unsigned) = {
    NAME(0), NAME(1), NAME(2), NAME(3), NAME(4), NAME(5), NAME(6), NAME(7),
    NAME(8), NAME(9), NAME(a), NAME(b), NAME(c), NAME(d), NAME(e), NAME(f)};

static unsigned interpret(const unsigned char *code, unsigned acc) {
    static void *const labels[] = {&&add, &&mul, &&rot, &&xor_, &&call, &&end};
    goto *labels[*code++];
add: acc += 7; goto *labels[*code++];
mul: acc *= 0x9e3779b1; goto *labels[*code++];
rot: acc = acc << 5 | acc >> 27; goto *labels[*code++];
xor_: acc ^= acc >> 15; goto *labels[*code++];
call: acc = table[acc & 255](acc); goto *labels[*code++];
end: return acc;
}

int main(void) {
    unsigned x = 1, sum = 0;
    for (int i = 0; i < 3000000; i++) {
        x = x * 1664525 + 1013904223;
        sum = table[x >> 24](sum);
    }
    unsigned (*volatile one)(unsigned) = f00;
    for (int i = 0; i < 1000000; i++) {
        if (i % 100000 == 0)
            one = table[i / 100000 * 25];
        sum += one(i);
    }
    unsigned char code[1000];
    for (int i = 0; i < 999; i++) {
        x = x * 1664525 + 1013904223;
        code[i] = (x >> 16) % 5;
    }
    code[999] = 5;
    for (int i = 0; i < 1000; i++)
        sum ^= interpret(code, sum + i);
    printf("%08x\n", sum);
    return 0;
}
