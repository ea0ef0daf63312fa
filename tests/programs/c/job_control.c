// flags: -O1
// A session on a terminal: foreground and background groups, stops from the keyboard and from
// reading and writing in the background, hang-up.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int report, control;

static void say(const char *text) {
    if (write(report, text, strlen(text)) < 0) _exit(9);
}

static void said(const char *what, pid_t pid, int options) {
    char line[128];
    int status = 0;
    pid_t got = waitpid(pid, &status, options);
    const char *kind = WIFSTOPPED(status) ? "stopped" : WIFCONTINUED(status) ? "continued" : WIFSIGNALED(status) ? "killed" : "exited";
    int number = WIFSTOPPED(status) ? WSTOPSIG(status) : WIFSIGNALED(status) ? WTERMSIG(status) : WIFCONTINUED(status) ? 0 : WEXITSTATUS(status);
    snprintf(line, sizeof line, "%s: %d %s %d\n", what, got == pid, kind, number);
    say(line);
}

// A job in a group of its own; in the foreground if told. `action` is what it does.
static pid_t job(int foreground, void (*action)(void)) {
    int ready[2];
    if (pipe(ready)) _exit(9);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        setpgid(0, 0);
        for (int signo = SIGTSTP; signo <= SIGTTOU; signo++) signal(signo, SIG_DFL);
        // The shell moves it to the foreground first.
        if (read(ready[0], &byte, 1) != 1) _exit(9);
        action();
        _exit(6);
    }
    setpgid(pid, pid);
    if (foreground) tcsetpgrp(0, pid);
    if (write(ready[1], "x", 1) != 1) _exit(9);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void read_line(void) {
    char line[64];
    ssize_t len = read(0, line, sizeof line);
    _exit(len > 0 ? line[0] - 'a' : len == 0 ? 30 : 31);
}

static void write_line(void) {
    struct termios mode;
    tcgetattr(1, &mode);
    mode.c_lflag |= TOSTOP;
    tcsetattr(1, TCSANOW, &mode);
    _exit(write(1, "out\n", 4) == 4 ? 7 : 8);
}

static void spin(void) {
    for (volatile unsigned long i = 0;; i++) {
    }
}

static void on_interrupt(int signo) { _exit(signo + 40); }

static void handle(void) {
    signal(SIGINT, on_interrupt);
    // Only now may the key come.
    if (write(control, "4", 1) != 1) _exit(9);
    for (;;) pause();
}

static int shell(void) {
    char byte;
    for (int signo = SIGTSTP; signo <= SIGTTOU; signo++) signal(signo, SIG_IGN);
    setpgid(0, 0);
    tcsetpgrp(0, getpid());
    pid_t pid = job(0, read_line);
    said("reads in the background", pid, WUNTRACED);
    tcsetpgrp(0, pid);
    kill(-pid, SIGCONT);
    // The driver types "d".
    if (write(control, "1", 1) != 1) return 9;
    said("reads in the foreground", pid, 0);
    tcsetpgrp(0, getpid());

    pid = job(1, spin);
    if (write(control, "2", 1) != 1) return 9;
    said("stopped by a key", pid, WUNTRACED);
    tcsetpgrp(0, getpid());
    kill(-pid, SIGCONT);
    said("goes on", pid, WCONTINUED);
    tcsetpgrp(0, pid);
    if (write(control, "3", 1) != 1) return 9;
    said("interrupted by a key", pid, 0);
    tcsetpgrp(0, getpid());

    pid = job(1, handle);
    said("handles a key", pid, 0);
    tcsetpgrp(0, getpid());

    pid = job(0, write_line);
    said("sets the terminal in the background", pid, WUNTRACED);
    kill(-pid, SIGKILL);
    said("is killed while stopped", pid, 0);
    signal(SIGHUP, SIG_DFL);
    // The terminal goes away.
    if (write(control, "5", 1) != 1) return 9;
    if (read(0, &byte, 1) >= 0) pause();
    pause();
    return 5;
}

int main(void) {
    int controls[2], reports[2];
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master) || pipe(controls) || pipe(reports)) return 1;
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        int terminal = open(ptsname(master), O_RDWR);
        ioctl(terminal, TIOCSCTTY, 0);
        for (int fd = 0; fd < 3; fd++) dup2(terminal, fd);
        close(terminal);
        close(master);
        close(controls[0]);
        control = controls[1];
        close(reports[0]);
        report = reports[1];
        _exit(shell());
    }
    close(controls[1]);
    close(reports[1]);
    char step;
    while (read(controls[0], &step, 1) == 1) {
        // What is typed must find the job in the foreground and running.
        usleep(100000);
        const char *keys = step == '1' ? "d\n" : step == '2' ? "\032" : step == '3' ? "\003" : step == '4' ? "\003" : NULL;
        if (keys == NULL) close(master);
        else if (write(master, keys, strlen(keys)) < 0) return 2;
    }
    char text[4096];
    ssize_t len;
    while ((len = read(reports[0], text, sizeof text)) > 0) fwrite(text, 1, len, stdout);
    int status;
    waitpid(pid, &status, 0);
    printf("the shell: %s %d\n", WIFSIGNALED(status) ? "killed" : "exited",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return 0;
}
