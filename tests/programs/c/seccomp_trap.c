// flags: -O1
// SECCOMP_RET_TRAP: what the handler is told, the registers it may change, and a call into
// the vsyscall page.
#include "seccomp.h"
#include <sys/time.h>
#include <ucontext.h>

extern char after_call[];
static void *call_addr;

static void on_sys(int signo, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    printf("signal %d code %d errno %d syscall %d arch %x\n", signo, info->si_code,
           info->si_errno, info->si_syscall, info->si_arch);
    printf("address %s, rip %s, rax %llx rdi %llx rsi %llx\n",
           info->si_call_addr == call_addr ? "right" : "wrong",
           (void *)regs[REG_RIP] == call_addr ? "same" : "other", regs[REG_RAX],
           regs[REG_RDI], regs[REG_RSI]);
    if (info->si_syscall == SYS_kcmp)
        printf("rcx %s, rdx %llx r10 %llx r8 %llx r9 %llx\n",
               (void *)regs[REG_RCX] == call_addr ? "same" : "other", regs[REG_RDX],
               regs[REG_R10], regs[REG_R8], regs[REG_R9]);
    printf("trap %llx error %llx\n", regs[REG_TRAPNO], regs[REG_ERR]);
    regs[REG_RAX] = 4711;
}

int main(void) {
    struct sigaction action = {.sa_sigaction = on_sys, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    no_new_privileges();
    struct sock_filter filter[] = {
        WORD(nr),
        IF_NOT(SYS_kcmp, 1),
        RETURN(SECCOMP_RET_TRAP | 0x1234),
        IF_NOT(SYS_time, 2),
        WORD(instruction_pointer),
        IF_NOT(0xff600400, 1),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(SECCOMP_RET_ALLOW),
    };
    if (INSTALL(filter))
        perror("install");
    call_addr = after_call;
    for (int round = 0; round < 3; round++) {
        long result;
        register long r10 asm("r10") = 4, r8 asm("r8") = 5, r9 asm("r9") = 6;
        asm volatile("syscall\n after_call:"
                     : "=a"(result)
                     : "0"(0x700000000 | SYS_kcmp), "D"(1L), "S"(2L), "d"(3L), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
        printf("result %ld\n", result);
    }
    // The legacy time() entry, if this kernel carries it out.
    char line[256];
    int has_vsyscall = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        has_vsyscall |= strstr(line, "[vsyscall]") != NULL;
    fclose(maps);
    if (!has_vsyscall)
        return 0;
    long (*legacy_time)(long *) = (void *)0xffffffffff600400;
    printf("legacy time %d\n", legacy_time(NULL) > 1000000000);
    struct sock_filter no_time[] = {
        WORD(nr),
        IF_NOT(SYS_time, 1),
        RETURN(SECCOMP_RET_ERRNO | 5),
        IF_NOT(SYS_gettimeofday, 1),
        RETURN(SECCOMP_RET_TRAP | 7),
        RETURN(SECCOMP_RET_ALLOW),
    };
    INSTALL(no_time);
    printf("legacy time %ld\n", legacy_time(NULL));
    int (*legacy_gettimeofday)(struct timeval *, void *) = (void *)0xffffffffff600000;
    call_addr = (void *)0xffffffffff600000;
    printf("legacy gettimeofday %d\n", legacy_gettimeofday((void *)0, (void *)0));
    return 0;
}
