// flags: -O1
// Credentials come and go, namespaces are entered: as far as this user may.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void show(const char *what, long result) {
    printf("%s: %ld %s\n", what, result, result < 0 ? strerror(errno) : "");
}

static void who(void) {
    uid_t r, e, s;
    gid_t rg, eg, sg;
    getresuid(&r, &e, &s);
    getresgid(&rg, &eg, &sg);
    gid_t groups[64];
    int count = getgroups(64, groups);
    printf("uid %d %d %d gid %d %d %d fs %d groups %d\n", r, e, s, rg, eg, sg, setfsuid(-1), count);
}

// Long enough for a save of the profile to be under way.
static volatile unsigned long sink;
static void work(void) {
    for (int i = 0; i < 300; i++) {
        for (unsigned long j = 0; j < 300; j++)
            sink += j % (i + 1);
        getppid();
    }
}

static void put(const char *file, const char *text) {
    int fd = open(file, O_WRONLY);
    show(file, write(fd, text, strlen(text)));
    close(fd);
}

int main(void) {
    char map[64];
    work();
    who();
    gid_t group = 12;
    show("setgroups", setgroups(1, &group));
    show("setresgid", setresgid(-1, 65534, -1));
    show("setresuid", setresuid(-1, 65534, -1));
    who();
    work();
    show("denied", open("/etc/shadow", O_RDONLY) >= 0 ? 0 : -1);
    show("setresuid back", setresuid(-1, 0, -1));
    show("setresgid back", setresgid(-1, 0, -1));
    show("setfsuid", setfsuid(7));
    who();
    setfsuid(0);
    show("dumpable", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    show("dumpable", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
    work();
    show("dumpable", prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    show("death signal", prctl(PR_SET_PDEATHSIG, 10, 0, 0, 0));
    int signo = 0;
    prctl(PR_GET_PDEATHSIG, &signo, 0, 0, 0);
    printf("%d\n", signo);
    show("keep capabilities", prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    show("keep capabilities", prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0));
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    show("capget", syscall(SYS_capget, &header, data));
    data[0].effective &= ~(1u << CAP_KILL);
    show("capset", syscall(SYS_capset, &header, data));
    syscall(SYS_capget, &header, data);
    printf("kill: %d\n", data[0].effective >> CAP_KILL & 1);

    work();
    show("unshare", unshare(CLONE_NEWUSER | CLONE_NEWUTS | CLONE_FS));
    sprintf(map, "0 %d 1", 0);
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", map);
    put("/proc/self/gid_map", map);
    who();
    show("sethostname", sethostname("inside", 6));
    char name[64] = "";
    gethostname(name, sizeof name);
    puts(strcmp(name, "inside") ? "outside" : name);
    work();
    show("unshare files", unshare(CLONE_FILES | CLONE_SYSVSEM));
    show("no new privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    show("no new privileges", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    return 0;
}
