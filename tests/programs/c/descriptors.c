// flags: -O1
// Which descriptors are open, to a program that tries them all.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void said(const char *what, long result) {
    printf("%s: %ld %s\n", what, result, result < 0 ? strerrorname_np(errno) : "");
    fflush(stdout);
}

static void list(void) {
    printf("open:");
    for (int fd = 0; fd < 1100; fd++)
        if (fcntl(fd, F_GETFD) >= 0) printf(" %d", fd);
    printf("\n");
    fflush(stdout);
}

int main(void) {
    list();
    said("close 1023", close(1023));
    said("dup 1023", dup(1023));
    said("dup2 1023 on itself", dup2(1023, 1023));
    said("duplicate from 1023", fcntl(1, F_DUPFD, 1023));
    list();
    said("dup2 to 1022", dup2(1, 1022));
    said("dup2 to 1021", dup3(1, 1021, O_CLOEXEC));
    list();
    said("close_range", syscall(SYS_close_range, 3, ~0u, 0));
    list();
    for (int fd = 3; fd < 1024; fd++)
        if (dup2(1, fd) != fd) said("dup2", fd);
    said("close again", close(1023));
    said("close twice", close(1023));
    said("close_range backwards", syscall(SYS_close_range, 9, 3, 0));
    close(2);
    return 3;
}
