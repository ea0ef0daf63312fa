// flags: -O2
// The way of a careful JIT: a page is writable or executable, never both; mprotect toggles
// it. Calls while it isn't executable fault; calls after it see the new code.
#include "fault.h"

static sigjmp_buf out;

static void refuse(int signo, siginfo_t *info, void *uc) {
    (void)signo;
    siglongjmp(out, info->si_code == SEGV_ACCERR && (greg_t)info->si_addr == REG(uc, RIP) ? 1 : 2);
}

int main(void) {
    unsigned char *page = (unsigned char *)pages(4, PROT_READ | PROT_WRITE);
    int (*f)(void) = (int (*)(void))(void *)(page + 4096);
    volatile long sum = 0, refused = 0;
    handle(SIGSEGV, refuse, 0);
    for (volatile int round = 0; round < 500; round++) {
        unsigned char code[] = {0xb8, 0, 0, 0, 0, 0xc3}; // mov $round,%eax; ret
        int value = round;
        memcpy(code + 1, &value, 4);
        memcpy(page + 4096, code, sizeof code);
        mprotect(page, 4 * 4096, PROT_READ | PROT_EXEC);
        for (int i = 0; i < 50; i++)
            sum += f();
        mprotect(page, 4 * 4096, PROT_READ | PROT_WRITE);
        int how = sigsetjmp(out, 1);
        if (how == 0)
            f();
        else if (how == 1)
            refused++;
    }
    // Executable only by PROT_EXEC, without PROT_READ in the request.
    mprotect(page, 4 * 4096, PROT_EXEC);
    sum += f();
    printf("sum %ld refused %ld\n", sum, refused);
    return sum == 499 * 500 / 2 * 50 + 499 && refused == 500 ? 0 : 1;
}
