// flags: -O1 -pthread
// Filters and threads: inherited by new ones, brought to old ones, and a thread killed alone.
#include "seccomp.h"
#include <pthread.h>
#include <stdatomic.h>

static atomic_int stage;
static atomic_int tid;

static void await(int value) {
    while (stage < value)
        usleep(200);
}

static void *follower(void *unused) {
    (void)unused;
    tid = (int)syscall(SYS_gettid);
    // Hot before the filter comes.
    for (int i = 0; i < 3000; i++)
        syscall(SYS_getppid);
    stage = 1;
    await(2);
    long result = syscall(SYS_getppid);
    printf("follower: %ld %s\n", result, strerror(errno));
    printf("follower: mode %d, no new privileges %d\n", prctl(PR_GET_SECCOMP, 0, 0, 0, 0),
           prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    // One of its own: now the other can't lead any more.
    printf("follower: own filter %ld\n", answer(SYS_getpgrp, SECCOMP_RET_ERRNO | EDOM));
    stage = 3;
    await(4);
    result = syscall(SYS_getsid, 0);
    printf("follower: getsid %s\n", result > 0 ? "works" : "fails");
    return NULL;
}

static void *inheritor(void *unused) {
    (void)unused;
    long result = syscall(SYS_getppid);
    printf("inheritor: %ld %s\n", result, strerror(errno));
    return NULL;
}

static void *victim(void *unused) {
    (void)unused;
    answer(SYS_getuid, SECCOMP_RET_KILL_THREAD);
    printf("victim: goes\n");
    syscall(SYS_getuid);
    printf("victim: still here\n");
    return NULL;
}

static void *strict_victim(void *unused) {
    (void)unused;
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0);
    write(1, "strict victim: goes\n", 20);
    syscall(SYS_getuid);
    write(1, "strict victim: still here\n", 26);
    return NULL;
}

static void run(void *(*function)(void *)) {
    pthread_t thread;
    void *result = (void *)1;
    pthread_create(&thread, NULL, function, NULL);
    pthread_join(thread, &result);
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    pthread_t thread;
    run(strict_victim);
    pthread_create(&thread, NULL, follower, NULL);
    await(1);
    no_new_privileges();
    struct sock_filter filter[] = {
        WORD(nr),
        IF_NOT(SYS_getppid, 1),
        RETURN(SECCOMP_RET_ERRNO | ENOTNAM),
        RETURN(SECCOMP_RET_ALLOW),
    };
    printf("leader: %ld\n", install(filter, 4, SECCOMP_FILTER_FLAG_TSYNC));
    stage = 2;
    await(3);
    run(inheritor);
    struct sock_filter second[] = {
        WORD(nr),
        IF_NOT(SYS_getsid, 1),
        RETURN(SECCOMP_RET_ERRNO | EDOM),
        RETURN(SECCOMP_RET_ALLOW),
    };
    long result = install(second, 4, SECCOMP_FILTER_FLAG_TSYNC);
    printf("leader: %s\n", result == tid ? "the follower's id" : "something else");
    result = install(second, 4, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH);
    printf("leader: %ld %s\n", result, strerror(errno));
    printf("leader: getsid %s\n", syscall(SYS_getsid, 0) > 0 ? "works" : "fails");
    stage = 4;
    pthread_join(thread, NULL);
    run(victim);
    run(inheritor);
    printf("leader: lives\n");
    return 5;
}
