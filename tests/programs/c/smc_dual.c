// flags: -O2
// One memfd mapped writable here and executable there (as careful JITs do): writes through
// one view are seen by code run in the other, also through write() on the descriptor.
#include "fault.h"

int main(void) {
    int fd = memfd_create("code", 0);
    CHECK(fd >= 0 && ftruncate(fd, 8192) == 0);
    unsigned char *w = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *x = mmap(NULL, 8192, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    CHECK(w != MAP_FAILED && x != MAP_FAILED);
    int (*f)(int) = (int (*)(int))(void *)(x + 100);
    long sum = 0, expected = 0;
    for (int version = 0; version < 300; version++) {
        unsigned char code[] = {0x8d, 0x87, 0, 0, 0, 0, 0xc3}; // lea version(%rdi),%eax; ret
        memcpy(code + 2, &version, 4);
        if (version % 3 == 2)
            CHECK(pwrite(fd, code, sizeof code, 100) == sizeof code);
        else
            memcpy(w + 100, code, sizeof code);
        for (int i = 0; i < 200; i++) {
            sum += f(i);
            expected += i + version;
        }
    }
    printf("%ld %s\n", sum, sum == expected ? "right" : "wrong");
    return sum != expected;
}
