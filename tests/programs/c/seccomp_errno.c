// flags: -O1
// Filters that fail calls: error numbers, arguments, several filters, and what
// seccomp(2) and prctl(2) answer themselves.
#include "seccomp.h"

static void show(const char *what, long result) {
    printf("%s: %ld, %s\n", what, result, result < 0 ? strerrorname_np(errno) : "fine");
}

static void status_lines(void) {
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, "Seccomp", 7) || !strncmp(line, "NoNewPrivs", 10))
            fputs(line, stdout);
    fclose(file);
}

static long op(unsigned operation, unsigned flags, void *at) {
    return syscall(SYS_seccomp, operation, flags, at);
}

static void questions(void) {
    unsigned actions[] = {SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_TRAP,
                          SECCOMP_RET_ERRNO,        SECCOMP_RET_TRACE,       SECCOMP_RET_LOG,
                          SECCOMP_RET_ALLOW,        0x12340000,              SECCOMP_RET_ERRNO | 1};
    for (unsigned i = 0; i < sizeof actions / sizeof actions[0]; i++)
        show("action", op(SECCOMP_GET_ACTION_AVAIL, 0, &actions[i]));
    show("action flags", op(SECCOMP_GET_ACTION_AVAIL, 1, &actions[0]));
    show("action pointer", op(SECCOMP_GET_ACTION_AVAIL, 0, NULL));
    show("operation", op(99, 0, NULL));
    show("strict with flags", op(SECCOMP_SET_MODE_STRICT, 1, NULL));
    show("strict with pointer", op(SECCOMP_SET_MODE_STRICT, 0, actions));
    show("unknown flag", op(SECCOMP_SET_MODE_FILTER, 1 << 9, NULL));
    unsigned known[] = {0, SECCOMP_FILTER_FLAG_TSYNC, SECCOMP_FILTER_FLAG_LOG,
                        SECCOMP_FILTER_FLAG_SPEC_ALLOW, SECCOMP_FILTER_FLAG_TSYNC_ESRCH};
    for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++)
        show("flag", op(SECCOMP_SET_MODE_FILTER, known[i], NULL));
    show("mode", prctl(PR_SET_SECCOMP, 7, 0, 0, 0));
    show("big mode", prctl(PR_SET_SECCOMP, 0x100000001L, 0, 0, 0));
    show("prctl filter", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0, 0, 0));
    show("get", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
}

static void refused(void) {
    struct sock_filter good[] = {RETURN(SECCOMP_RET_ALLOW)};
    struct sock_filter bad[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 2), RETURN(SECCOMP_RET_ALLOW)};
    show("empty", install(good, 0, 0));
    show("long", install(good, BPF_MAXINSNS + 1, 0));
    show("null", install(NULL, 1, 0));
    show("unreadable", install((void *)8, 1, 0));
    show("bad", INSTALL(bad));
}

int main(void) {
    questions();
    no_new_privileges();
    refused();
    status_lines();

    show("answer", answer(SYS_getppid, SECCOMP_RET_ERRNO | ENOTNAM));
    show("getppid", syscall(SYS_getppid));
    show("getpid is a number", syscall(SYS_getpid) > 1);
    show("get", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
    show("strict now", prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));

    // The newest of equal actions; a stricter one of an older filter.
    answer(SYS_getppid, SECCOMP_RET_ERRNO | EXDEV);
    show("newest", syscall(SYS_getppid));
    answer(SYS_getppid, SECCOMP_RET_LOG);
    show("older", syscall(SYS_getppid));
    answer(SYS_getpgrp, SECCOMP_RET_ERRNO);
    show("errno 0", syscall(SYS_getpgrp));
    answer(SYS_getgid, SECCOMP_RET_ERRNO | 0xffff);
    show("clamped", syscall(SYS_getgid));
    answer(SYS_getuid, SECCOMP_RET_TRACE | 3);
    show("no tracer", syscall(SYS_getuid));
    answer(SYS_geteuid, SECCOMP_RET_LOG);
    show("logged", syscall(SYS_geteuid) == geteuid());

    // By argument, all 64 bits of it.
    struct sock_filter dup_high[] = {
        WORD(nr), IF_NOT(SYS_lseek, 6),      ARG_LOW(0),
        IF_NOT(0x11111111, 4), BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1]) + 4),
        IF_NOT(0x22222222, 2), ARG_LOW(2),   BPF_STMT(BPF_RET | BPF_A, 0),
        RETURN(SECCOMP_RET_ALLOW),
    };
    show("install", INSTALL(dup_high));
    show("argument", syscall(SYS_lseek, 0x11111111L, 0x2222222200000000L, SECCOMP_RET_ERRNO | 42));
    show("other argument", syscall(SYS_lseek, 0x11111111L, 0x2222222300000000L, 0));

    // Numbers beyond the table, the x32 bit, the upper half of RAX.
    answer(0x40000000 | SYS_getpid, SECCOMP_RET_ERRNO | 77);
    show("x32", syscall(0x40000000 | SYS_getpid));
    answer(-1, SECCOMP_RET_ERRNO | 78);
    show("minus one", syscall(-1));
    answer(SYS_getegid, SECCOMP_RET_ERRNO | 79);
    show("upper half", syscall(0x500000000L | SYS_getegid));

    // Hot: the filter counts in translated code too.
    long failed = 0;
    for (int i = 0; i < 5000; i++)
        failed += syscall(SYS_getppid) == -1 && errno == EXDEV;
    show("failed", failed);
    for (int i = 0; i < 5000; i++)
        failed -= syscall(SYS_getpid) > 0;
    show("allowed", failed);

    // By where the call is made.
    struct sock_filter here[] = {
        WORD(nr), IF_NOT(SYS_gettid, 4), WORD(instruction_pointer),
        IF_NOT((unsigned)(unsigned long)main, 1), RETURN(SECCOMP_RET_KILL), RETURN(SECCOMP_RET_ERRNO | 1),
        RETURN(SECCOMP_RET_ALLOW),
    };
    INSTALL(here);
    show("elsewhere", syscall(SYS_gettid));
    status_lines();
    return 0;
}
