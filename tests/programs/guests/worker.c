// Works until it is killed.
#include <unistd.h>

static unsigned long mix(unsigned long x) {
    return x % 7 ? x * 2654435761u : x / 3 + 1;
}

int main(void) {
    volatile unsigned long x = 1;
    for (;;) {
        for (int i = 0; i < 1000; i++)
            x = mix(x + i);
        getppid();
    }
}
