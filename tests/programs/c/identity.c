// flags: -O1 -Wno-deprecated
// Who the process is: personality, uname, limits, ids, environment, dumpable, name changes.
#include "fault.h"
#include <fcntl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>

extern char **environ;

int main(int argc, char **argv) {
    struct utsname name;
    struct rlimit limit;
    char comm[16];
    uname(&name);
    int persona = personality(0xffffffff);
    printf("%s %s personality %x\n", name.sysname, name.machine, persona);
    CHECK(personality(persona | ADDR_NO_RANDOMIZE) == persona);
    printf("changed %x\n", personality(persona) ^ persona);
    getrlimit(RLIMIT_STACK, &limit);
    printf("stack %lx %lx\n", (long)limit.rlim_cur, (long)limit.rlim_max);
    getrlimit(RLIMIT_NOFILE, &limit);
    printf("files %ld\n", (long)limit.rlim_cur);
    printf("ids %d %d %d, dumpable %d\n", getuid(), getgid(), getpid() == (int)getpgid(0) || getpid() > 1,
           prctl(PR_GET_DUMPABLE));
    prctl(PR_SET_NAME, "another-name-too-long");
    prctl(PR_GET_NAME, comm);
    printf("%s\n", comm);
    // Environment and arguments lie on the stack, argv first, in one piece.
    int strings = 1;
    for (char **e = environ; *e; e++)
        strings &= strchr(*e, '=') != NULL && (char *)e < *e;
    printf("argc %d argv[argc] %d environment %d adjacent %d\n", argc, argv[argc] == NULL, strings,
           argv + argc + 1 == environ);
    // Descriptors: nothing open beyond the usual three.
    int fd = dup(0);
    printf("lowest free descriptor %d\n", fd);
    unsigned long mask = 0;
    for (int i = 3; i < 100; i++)
        mask |= (i != fd && fcntl(i, F_GETFD) != -1);
    printf("others open %lu\n", mask);
    return 0;
}
