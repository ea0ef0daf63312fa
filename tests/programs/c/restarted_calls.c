// flags: -O1
// Which blocking calls start again after a handler with SA_RESTART and which tell EINTR
// (signal(7)): each is interrupted twice if it lasts, and the second handler ends its wait.
#include "fault.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>

static volatile int ticks;
static void (*release)(void);

static void tick(int signo, siginfo_t *info, void *uc) {
    (void)signo, (void)info, (void)uc;
    int error = errno;
    if (++ticks == 2 && release)
        release();
    errno = error;
}

static void start(void) {
    struct itimerval twice = {{0, 200000}, {0, 30000}};
    ticks = 0;
    setitimer(ITIMER_REAL, &twice, NULL);
}

static void stop(void) {
    struct itimerval off = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &off, NULL);
}

#define TELL(name, call)                                                                   \
    do {                                                                                   \
        start();                                                                           \
        errno = 0;                                                                         \
        long result_ = (call);                                                             \
        int error_ = result_ == -1 ? errno : 0, ticks_ = ticks;                            \
        stop();                                                                            \
        printf("  %-28s %s %d\n", name,                                                    \
               error_ ? strerrorname(error_) : "done", ticks_ < 3 ? ticks_ : 3);           \
    } while (0)

static const char *strerrorname(int error) {
    static char text[16];
    switch (error) {
    case EINTR: return "EINTR";
    case EAGAIN: return "EAGAIN";
    case ETIMEDOUT: return "ETIMEDOUT";
    default: snprintf(text, sizeof text, "%d", error); return text;
    }
}

static int ends[2], pair[2], listener, event, epoll, set, timer, queue;
static uint32_t word;
static char byte, big[1 << 20];

static void write_pipe(void) { CHECK(write(ends[1], "x", 1) == 1); }
static void write_pair(void) { CHECK(write(pair[1], "x", 1) == 1); }
static void drain_pair(void) {
    while (recv(pair[1], big, sizeof big, MSG_DONTWAIT) > 0)
        ;
}
static void write_event(void) { eventfd_write(event, 1); }
static void wake(void) {
    word = 1;
    syscall(SYS_futex, &word, FUTEX_WAKE, 1, NULL, NULL, 0);
}
static void post(void) { semop(set, &(struct sembuf){0, 1, 0}, 1); }
static void send_message(void) {
    struct { long type; char text; } message = {1, 'x'};
    msgsnd(queue, &message, 1, 0);
}
static void arm(void) {
    timerfd_settime(timer, 0, &(struct itimerspec){{0, 0}, {0, 1000000}}, NULL);
}
static struct sockaddr_un name;
static socklen_t name_length;
static void call_in(void) {
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(s, (struct sockaddr *)&name, name_length) == 0);
}

static void fill_pair(void) {
    while (send(pair[0], big, sizeof big, MSG_DONTWAIT) > 0)
        ;
}

static void all(void) {
    struct timespec more = {0, 900000000}, at;
    siginfo_t info;
    sigset_t others;
    sigemptyset(&others), sigaddset(&others, SIGUSR2);
    release = write_pipe;
    TELL("read, pipe", read(ends[0], &byte, 1));
    if (ticks < 2) write_pipe(), read(ends[0], &byte, 1);
    release = write_pair;
    TELL("recv", recv(pair[0], &byte, 1, 0));
    TELL("recvmsg", ({
             struct iovec v = {&byte, 1};
             struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
             recvmsg(pair[0], &m, 0);
         }));
    struct timeval limit = {5, 0}, none = {0, 0};
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    TELL("recv, with a timeout", recv(pair[0], &byte, 1, 0));
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    while (recv(pair[0], big, sizeof big, MSG_DONTWAIT) > 0)
        ;
    fill_pair();
    release = drain_pair;
    TELL("send", send(pair[0], &byte, 1, 0));
    drain_pair();
    release = call_in;
    TELL("accept", accept(listener, NULL, NULL));
    release = write_event;
    TELL("read, eventfd", read(event, big, 8));
    release = arm;
    TELL("read, timerfd", read(timer, big, 8));
    release = wake, word = 0;
    TELL("futex", syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0));
    release = wake, word = 0;
    TELL("futex, with a timeout", syscall(SYS_futex, &word, FUTEX_WAIT, 0, &more, NULL, 0));
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += 5, word = 0;
    TELL("futex, until",
         syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &at, NULL, FUTEX_BITSET_MATCH_ANY));
    release = post;
    TELL("semop", semop(set, &(struct sembuf){0, -1, 0}, 1));
    release = send_message;
    TELL("msgrcv", msgrcv(queue, big, 100, 0, 0));
    release = NULL;
    TELL("nanosleep", nanosleep(&more, NULL));
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += 5;
    int error = 0;
    TELL("clock_nanosleep, until", (error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL)) ? (errno = error, -1) : 0);
    TELL("poll", poll(NULL, 0, 900));
    TELL("ppoll", ppoll(NULL, 0, &more, NULL));
    TELL("ppoll, with a mask", ppoll(NULL, 0, &more, &others));
    more = (struct timespec){0, 900000000};
    TELL("select", select(0, NULL, NULL, NULL, &(struct timeval){0, 900000}));
    TELL("pselect", pselect(0, NULL, NULL, NULL, &more, &others));
    struct epoll_event happened;
    TELL("epoll_wait", epoll_wait(epoll, &happened, 1, 900));
    TELL("epoll_pwait", epoll_pwait(epoll, &happened, 1, 900, &others));
    TELL("sigsuspend", sigsuspend(&others));
    TELL("pause", pause());
    TELL("sigtimedwait", sigtimedwait(&others, &info, &more));
    TELL("sigwaitinfo", sigwaitinfo(&others, &info));
}

int main(void) {
    CHECK(pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    event = eventfd(0, 0), epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    set = semget(IPC_PRIVATE, 1, 0600), queue = msgget(IPC_PRIVATE, 0600);

    CHECK(set >= 0 && queue >= 0);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    name.sun_family = AF_UNIX;
    // The kernel picks an abstract name.
    CHECK(bind(listener, (struct sockaddr *)&name, sizeof(sa_family_t)) == 0);
    name_length = sizeof name;
    getsockname(listener, (struct sockaddr *)&name, &name_length);
    listen(listener, 5);
    printf("without SA_RESTART\n");
    handle(SIGALRM, tick, 0);
    all();
    printf("with SA_RESTART\n");
    handle(SIGALRM, tick, SA_RESTART);
    all();
    semctl(set, 0, IPC_RMID), msgctl(queue, IPC_RMID, NULL);
    return 0;
}
