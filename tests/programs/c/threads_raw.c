// flags: -O1 -pthread
// clone and clone3 as they are: ids where they were asked for, errors as the kernel's.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int parent_tid, child_tid, own_tid, open_in_thread = -1;
static long thread_local_word;

// clone with a function, without the C library: the child has no TLS of its own.
static long start(uint64_t flags, void *stack, void (*body)(void), void *tls) {
    long result;
    register int *r10 __asm__("r10") = &child_tid;
    register void *r8 __asm__("r8") = tls;
    register void (*r9)(void) __asm__("r9") = body;
    __asm__ volatile("syscall\n\ttest %%rax,%%rax\n\tjnz 1f\n\txor %%ebp,%%ebp\n\tand $-16,%%rsp\n\tcall *%%r9\n\t"
                     "mov $60,%%eax\n\txor %%edi,%%edi\n\tsyscall\n1:"
                     : "=a"(result)
                     : "a"(SYS_clone), "D"(flags), "S"(stack), "d"(&parent_tid), "r"(r10), "r"(r8),
                       "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static long raw(long nr, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static void body(void) {
    own_tid = (int)raw(SYS_gettid, 0, 0, 0);
    long word;
    __asm__ volatile("mov %%fs:0,%0" : "=r"(word));
    thread_local_word = word;
    open_in_thread = (int)raw(SYS_dup, 1, 0, 0);
}

#define THREAD (CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_FS | CLONE_SYSVSEM)

static void wait_for_child(void) {
    int value;
    while ((value = __atomic_load_n(&child_tid, __ATOMIC_ACQUIRE)) != 0)
        syscall(SYS_futex, &child_tid, FUTEX_WAIT, value, NULL, NULL, 0);
}

static const char *name(long result) { return result < 0 ? strerror((int)-result) : "success"; }

int main(void) {
    char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static uint64_t tls[8] = {0x1234};

    child_tid = -1;
    long tid = start(THREAD | CLONE_FILES | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID,
                    stack + 65536, body, tls);
    wait_for_child();
    printf("ids agree: %d %d\n", tid == own_tid, tid == parent_tid);
    printf("its own TLS: %lx\n", thread_local_word);
    printf("descriptors are shared: %d\n", close(open_in_thread) == 0);

    child_tid = -1;
    start(THREAD | CLONE_SETTLS | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, stack + 65536, body, tls);
    wait_for_child();
    printf("descriptors of its own: %d\n", close(open_in_thread) == -1 && errno == EBADF);

    printf("CLONE_THREAD alone: %s\n", name(raw(SYS_clone, CLONE_THREAD, 0, 0)));
    printf("without CLONE_VM: %s\n", name(raw(SYS_clone, CLONE_THREAD | CLONE_SIGHAND, 0, 0)));
    printf("with a new user namespace: %s\n", name(raw(SYS_clone, THREAD | CLONE_NEWUSER, 0, 0)));
    struct clone_args args = {.flags = THREAD, .exit_signal = 17};
    printf("clone3, exit signal: %s\n", name(raw(SYS_clone3, (long)&args, sizeof args, 0)));
    args = (struct clone_args){.flags = THREAD, .stack = (uintptr_t)stack};
    printf("clone3, stack without size: %s\n", name(raw(SYS_clone3, (long)&args, sizeof args, 0)));
    printf("clone3, short: %s\n", name(raw(SYS_clone3, (long)&args, 32, 0)));
    printf("clone3, long: %s\n", name(raw(SYS_clone3, (long)&args, 8192, 0)));
    printf("clone3, nowhere: %s\n", name(raw(SYS_clone3, 8, sizeof args, 0)));
    printf("set_tid_address: %d\n", raw(SYS_set_tid_address, 0, 0, 0) == getpid());
    int *address = 0;
    raw(SYS_set_tid_address, (long)&own_tid, 0, 0);
    prctl(PR_GET_TID_ADDRESS, &address);
    printf("PR_GET_TID_ADDRESS: %d\n", address == &own_tid);
    printf("set_robust_list, wrong size: %s\n", name(raw(SYS_set_robust_list, 0, 23, 0)));
    return 0;
}
