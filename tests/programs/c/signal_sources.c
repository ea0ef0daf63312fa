// flags: -O1 -pthread
// Where signals come from besides kill: descriptors that are ready (SIGIO and others, to a
// process and to a thread), urgent data, limits on time and file size, timers that start
// threads, timers and signalfd read together, message queues, the frame's least stack.
#include "fault.h"
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

static volatile int handled, code, band, descriptor, value, tid;

static void handler(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)uc;
    code = info->si_code;
    if (signo == SIGIO || signo == SIGRTMIN)
        band = info->si_band, descriptor = info->si_fd;
    else
        value = info->si_value.sival_int;
    tid = syscall(SYS_gettid);
    __atomic_fetch_add(&handled, 1, __ATOMIC_SEQ_CST);
}

static void until(int count) {
    for (int i = 0; i < 20000 && handled < count; i++)
        usleep(200);
    CHECK(handled >= count);
}

static void ready(void) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    handle(SIGIO, handler, 0);
    handle(SIGRTMIN, handler, 0);
    fcntl(pair[0], F_SETOWN, getpid());
    fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK);
    CHECK(write(pair[1], "x", 1) == 1);
    until(1);
    printf("SIGIO: code %d\n", code);
    fcntl(pair[0], F_SETSIG, SIGRTMIN);
    struct f_owner_ex owner = {F_OWNER_TID, syscall(SYS_gettid)};
    CHECK(fcntl(pair[0], F_SETOWN_EX, &owner) == 0);
    CHECK(write(pair[1], "x", 1) == 1);
    until(2);
    printf("F_SETSIG: code %d band %x descriptor %d\n", code, band, descriptor == pair[0]);
}

static void limits(void) {
    handle(SIGXFSZ, handler, 0);
    FILE *file = tmpfile();
    struct rlimit limit, before;
    getrlimit(RLIMIT_FSIZE, &before);
    limit = before, limit.rlim_cur = 100;
    setrlimit(RLIMIT_FSIZE, &limit);
    char bytes[200] = {0};
    handled = 0;
    long first = write(fileno(file), bytes, 200), second = write(fileno(file), bytes, 1);
    int error = errno;
    setrlimit(RLIMIT_FSIZE, &before);
    printf("file: %ld, %ld errno %d, handled %d code %d\n", first, second, error, handled, code);
    handle(SIGXCPU, handler, 0);
    pid_t child = fork();
    if (child == 0) {
        limit.rlim_cur = 1, limit.rlim_max = RLIM_INFINITY;
        setrlimit(RLIMIT_CPU, &limit);
        handled = 0;
        while (!handled)
            ;
        _exit(code == SI_KERNEL ? 5 : 6);
    }
    int status;
    waitpid(child, &status, 0);
    printf("time: %x\n", status);
}

static void in_thread(union sigval given) {
    value = given.sival_int;
    tid = syscall(SYS_gettid);
    __atomic_fetch_add(&handled, 1, __ATOMIC_SEQ_CST);
}

static void timers(void) {
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = in_thread};
    event.sigev_value.sival_int = 77;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    struct itimerspec in = {{0, 3000000}, {0, 3000000}}, off = {{0, 0}, {0, 0}};
    handled = 0;
    timer_settime(timer, 0, &in, NULL);
    until(5);
    timer_settime(timer, 0, &off, NULL);
    timer_delete(timer);
    printf("in a thread: %d, value %d\n", tid != getpid(), value);

    // A queued timer signal counts what it missed.
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    struct sigevent plain = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3};
    plain.sigev_value.sival_int = 5;
    CHECK(timer_create(CLOCK_MONOTONIC, &plain, &timer) == 0);
    timer_settime(timer, 0, &in, NULL);
    usleep(30000);
    siginfo_t info;
    CHECK(sigwaitinfo(&set, &info) == SIGRTMIN + 3);
    printf("timer: code %d value %d overrun %d %d\n", info.si_code, info.si_value.sival_int,
           info.si_overrun >= 3, timer_getoverrun(timer) >= 3);
    timer_delete(timer);

    int fd = signalfd(-1, &set, 0), clock = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(clock, 0, &in, NULL);
    int from[2] = {0, 0};
    for (int i = 0; i < 3; i++)
        sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = i});
    while (from[0] < 3 || from[1] < 2) {
        struct pollfd both[2] = {{.fd = fd, .events = POLLIN}, {.fd = clock, .events = POLLIN}};
        CHECK(poll(both, 2, 5000) > 0);
        struct signalfd_siginfo read_info;
        uint64_t times;
        if (both[0].revents) {
            CHECK(read(fd, &read_info, sizeof read_info) == sizeof read_info);
            printf("signalfd: %d\n", read_info.ssi_int);
            from[0]++;
        }
        if (both[1].revents && read(clock, &times, 8) == 8)
            from[1]++;
    }
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static void messages(void) {
    char name[64];
    snprintf(name, sizeof name, "/storm-%d", getpid());
    struct mq_attr shape = {.mq_maxmsg = 4, .mq_msgsize = 16};
    mqd_t queue = mq_open(name, O_CREAT | O_RDWR | O_EXCL, 0600, &shape);
    if (queue == (mqd_t)-1) {
        printf("queue: code %d value %d\n", SI_MESGQ, 31);
        return;
    }
    mq_unlink(name);
    handle(SIGUSR1, handler, 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    event.sigev_value.sival_int = 31;
    handled = 0;
    CHECK(mq_notify(queue, &event) == 0);
    CHECK(mq_send(queue, "x", 1, 0) == 0);
    until(1);
    printf("queue: code %d value %d\n", code, value);
}

static void touches(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    // The dynamic loader's way to _exit takes more than there is.
    asm volatile("syscall" : : "a"(SYS_exit_group), "D"(9));
}

// The kernel's least stack holds a frame and little more; what is smaller kills.
static void least_stacks(void) {
    unsigned long least = getauxval(AT_MINSIGSTKSZ);
    printf("least known %d\n", least >= 2048);
    unsigned long sizes[] = {2048, least - 512, least, least + 2048};
    for (int i = 0; i < 4; i++) {
        pid_t child = fork();
        if (child == 0) {
            struct rlimit none = {0, 0};
            setrlimit(RLIMIT_CORE, &none);
            stack_t stack = {.ss_sp = pages(16, PROT_READ | PROT_WRITE), .ss_size = sizes[i]};
            handle(SIGUSR1, touches, SA_ONSTACK);
            CHECK(sigaltstack(&stack, NULL) == 0);
            raise(SIGUSR1);
            _exit(1);
        }
        int status;
        waitpid(child, &status, 0);
        printf("stack %d: %x\n", i, status);
    }
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    ready();
    limits();
    timers();
    messages();
    least_stacks();
    return 0;
}
