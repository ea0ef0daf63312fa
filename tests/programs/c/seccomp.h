// What the seccomp guests share: filters as short lists of macros.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WORD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ARG_LOW(index) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[index]))
#define IF_NOT(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)
#define INSTALL(filter) install(filter, sizeof(filter) / sizeof((filter)[0]), 0)

static long install(struct sock_filter *filter, unsigned len, unsigned flags) {
    struct sock_fprog program = {.len = (unsigned short)len, .filter = filter};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static void no_new_privileges(void) {
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        perror("no_new_privs");
}

// One call answered by `result`, all others allowed.
static long answer(long number, unsigned result) {
    struct sock_filter filter[] = {
        WORD(nr),
        IF_NOT((unsigned)number, 1),
        RETURN(result),
        RETURN(SECCOMP_RET_ALLOW),
    };
    return INSTALL(filter);
}
