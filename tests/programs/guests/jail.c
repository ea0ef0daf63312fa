// Goes into the folder that it is given as its root, and works there for a while.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 2 || chroot(argv[1]) || chdir("/")) {
        printf("no jail: %s\n", strerror(errno));
        return 77;
    }
    volatile unsigned long sum = 0;
    for (int i = 0; i < 2000; i++) {
        for (int j = 0; j < 200; j++)
            sum += j % (i + 1);
        getppid();
    }
    printf("%lu %d\n", sum, access("/etc", F_OK));
    return 0;
}
