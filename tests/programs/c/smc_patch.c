// flags: -O2
// A function on a writable and executable page is patched and called in a loop: each call
// sees the newest bytes. First rarely (translated in between), then before every call.
#include "fault.h"

typedef int (*function)(int);

static function emit(unsigned char *at, int value) {
    // lea value(%rdi),%eax; ret
    unsigned char code[] = {0x8d, 0x87, 0, 0, 0, 0, 0xc3};
    memcpy(code + 2, &value, 4);
    memcpy(at, code, sizeof code);
    return (function)(void *)at;
}

int main(void) {
    unsigned char *page = (unsigned char *)pages(2, PROT_READ | PROT_WRITE | PROT_EXEC);
    long sum = 0, expected = 0;
    for (int version = 0; version < 20; version++) {
        function f = emit(page + 4090, version); // straddles the two pages
        for (int i = 0; i < 20000; i++) {
            sum += f(i);
            expected += i + version;
        }
    }
    for (int i = 0; i < 30000; i++) {
        *(volatile int *)(page + 4092) = i * 3;
        sum += ((function)(void *)(page + 4090))(i);
        expected += i * 4;
    }
    // Data and code on one page, written all the time without touching the code.
    function f = emit(page, 1);
    volatile int *data = (volatile int *)(page + 2048);
    for (int i = 0; i < 300000; i++) {
        *data = f(*data);
        expected++;
    }
    sum += *data;
    printf("%ld %s\n", sum, sum == expected ? "right" : "wrong");
    return sum != expected;
}
