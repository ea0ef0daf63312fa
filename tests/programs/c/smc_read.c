// flags: -O2
// System calls that write into a page with code: read, pread, readv, recv, getcwd, ioctl.
// They succeed, nothing is lost, and the new code runs.
#include "fault.h"
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

static unsigned char *page;

static int call(void) {
    int sum = 0;
    for (int i = 0; i < 2000; i++)
        sum += ((int (*)(void))(void *)page)();
    return sum / 2000;
}

static const unsigned char *code(int value) {
    static unsigned char bytes[] = {0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(bytes + 1, &value, 4);
    return bytes;
}

int main(void) {
    int ends[2], sockets[2];
    CHECK(pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    page = (unsigned char *)pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy(page, code(0), 6);
    for (int i = 1; i < 40; i++) {
        CHECK(call() == 6 * i - 6);
        CHECK(write(ends[1], code(6 * i - 5), 6) == 6);
        CHECK(read(ends[0], page, 6) == 6 && call() == 6 * i - 5);

        CHECK(write(sockets[1], code(6 * i - 4), 6) == 6);
        CHECK(recv(sockets[0], page, 6, 0) == 6 && call() == 6 * i - 4);

        CHECK(write(ends[1], code(6 * i - 3), 6) == 6);
        struct iovec parts[2] = {{page, 3}, {page + 3, 3}};
        CHECK(readv(ends[0], parts, 2) == 6 && call() == 6 * i - 3);

        FILE *file = tmpfile();
        CHECK(pwrite(fileno(file), code(6 * i - 2), 6, 100) == 6);
        CHECK(pread(fileno(file), page, 6, 100) == 6 && call() == 6 * i - 2);
        fclose(file);

        CHECK(write(sockets[1], code(6 * i - 1), 6) == 6);
        struct iovec part = {page, 6};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        CHECK(recvmsg(sockets[0], &message, 0) == 6 && call() == 6 * i - 1);

        // Kernel results beside the code leave it alone.
        struct stat *status = (struct stat *)(page + 1024);
        CHECK(fstat(0, status) == 0 && call() == 6 * i - 1);
        CHECK(clock_gettime(CLOCK_MONOTONIC, (struct timespec *)(page + 2048)) == 0);
        CHECK(getcwd((char *)page + 3000, 1000) != NULL);
        CHECK(write(ends[1], "abc", 3) == 3);
        CHECK(ioctl(ends[0], FIONREAD, page + 512) == 0 && *(int *)(page + 512) == 3);
        CHECK(read(ends[0], page + 600, 3) == 3 && memcmp(page + 600, "abc", 3) == 0);
        CHECK(call() == 6 * i - 1);
        memcpy(page, code(6 * i), 6);
    }
    printf("right, last %d\n", call());
    return 0;
}
