// flags: -O1
// Segment bases, refused features, the vsyscall page, registers after a system call.
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static uint64_t block[8] = {11, 22, 33};

static void say(const char *what, long result) {
    printf("%s: %s\n", what, result == -1 ? strerrorname_np(errno) : "ok");
}

int main(void) {
    uint64_t fs = 0, gs = 1, value;
    say("get fs", syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
    say("get gs", syscall(SYS_arch_prctl, ARCH_GET_GS, &gs));
    asm volatile("mov %%fs:0, %0" : "=r"(value));
    printf("fs:0 is fs: %d, gs %lu\n", value == fs, gs);
    say("set gs", syscall(SYS_arch_prctl, ARCH_SET_GS, block));
    asm volatile("mov %%gs:8, %0" : "=r"(value));
    printf("gs:8 %lu\n", value);
    asm volatile("movq $44, %%gs:16" ::: "memory");
    printf("block %lu\n", block[2]);
    say("get gs", syscall(SYS_arch_prctl, ARCH_GET_GS, &gs));
    printf("gs %d\n", gs == (uint64_t)block);
    say("kernel base", syscall(SYS_arch_prctl, ARCH_SET_GS, -4096L));
    say("bad pointer", syscall(SYS_arch_prctl, ARCH_GET_FS, 8));
    say("unknown code", syscall(SYS_arch_prctl, 0x9999, 0));

    uint64_t rcx, r11, flags_before;
    long result = SYS_getppid;
    asm volatile("pushf; pop %[f]; syscall; 1: lea 1b(%%rip), %%rdx; sub %%rdx, %%rcx; mov %%r11, %[r]"
                 : "+a"(result), "=&c"(rcx), [r] "=r"(r11), [f] "=&r"(flags_before)
                 :
                 : "r11", "rdx", "memory");
    printf("rcx after %ld, r11 is the flags %d\n", rcx, (r11 & 0xfd5) == (flags_before & 0xfd5));
    result = 0x1122334400000000 | SYS_getpid;
    asm volatile("syscall" : "+a"(result) : : "rcx", "r11", "memory");
    printf("the upper half of rax is ignored: %d\n", result == getpid());
    errno = 0;
    say("no such call", syscall(100000));
    say("nor this", syscall(-1L));
    say("prctl name", prctl(PR_SET_NAME, "modes"));
    char name[16];
    prctl(PR_GET_NAME, name);
    printf("name %s\n", name);
    printf("dumpable %d\n", prctl(PR_GET_DUMPABLE));
    say("bad prctl", prctl(12345, 0, 0, 0, 0));

    time_t (*vsyscall_time)(time_t *) = (void *)0xffffffffff600400;
    int (*vsyscall_gettimeofday)(struct timeval *, void *) = (void *)0xffffffffff600000;
    long (*vsyscall_getcpu)(unsigned *, unsigned *, void *) = (void *)0xffffffffff600800;
    struct timeval now;
    unsigned cpu = 12345;
    time_t by_page = vsyscall_time(NULL);
    printf("vsyscall time %d\n", by_page - time(NULL) <= 0 && time(NULL) - by_page < 3);
    printf("vsyscall gettimeofday %d\n", vsyscall_gettimeofday(&now, NULL) == 0 && now.tv_sec >= by_page);
    printf("vsyscall getcpu %d\n", vsyscall_getcpu(&cpu, NULL, NULL) == 0 && cpu != 12345);
    return 0;
}
