// flags: -O1
// Code that changes the instructions right behind itself, in the same block, in a loop; and
// a string instruction that overwrites the code after it.
#include "fault.h"

int main(void) {
    unsigned char *page = (unsigned char *)pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    // mov %edi,1f+1(%rip); nop...; 1: mov $0,%eax; ret
    unsigned char code[] = {0x89, 0x3d, 5, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(page, code, sizeof code);
    int (*f)(int) = (int (*)(int))(void *)page;
    for (int i = 0; i < 20000; i++)
        CHECK(f(i * 3) == i * 3);
    printf("next instruction: right\n");

    // A loop that counts up its own immediate: 1: add $1,%eax; incb imm; dec %edi; jnz 1b; ret
    unsigned char loop[] = {0x31, 0xc0, 0x83, 0xc0, 1, 0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xff, 0xcf, 0x75, 0xf3, 0xc3};
    memcpy(page + 512, loop, sizeof loop);
    int (*g)(int) = (int (*)(int))(void *)(page + 512);
    int sum = 0;
    for (int i = 0; i < 10; i++)
        sum += 1 + i;
    int got = g(10);
    printf("own immediate: %d %s\n", got, got == sum ? "right" : "wrong");

    // rep stosb over the instructions behind it: they become nops (90), up to the ret.
    unsigned char rep[] = {0xb8, 0x90, 0, 0, 0, 0xf3, 0xaa, 0x0f, 0x0b, 0x0f, 0x0b, 0xb8, 7, 0, 0, 0, 0xc3};
    for (int i = 0; i < 1000; i++) {
        memcpy(page + 1024, rep, sizeof rep);
        long result;
        void *to = page + 1024 + 7;
        long count = 4;
        asm volatile("call *%3" : "=a"(result), "+D"(to), "+c"(count) : "r"(page + 1024) : "memory");
        CHECK(result == 7);
    }
    printf("rep stosb: right\n");
    return got != sum;
}
