// flags: -O1
// args: first second
// /proc/self as the guest must see it: exe, cmdline, comm, maps with the program's own
// mappings and nothing foreign (no second program, no code cache).
#include "fault.h"
#include <fcntl.h>
#include <sys/prctl.h>

static int writable_data = 1;

static long slurp(const char *path, char *buffer, long size) {
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    long total = 0, got;
    while ((got = read(fd, buffer + total, size - total - 1)) > 0)
        total += got;
    close(fd);
    buffer[total] = 0;
    return total;
}

int main(int argc, char **argv) {
    static char text[1 << 20], exe[4096], comm[64];
    (void)argc;
    long length = readlink("/proc/self/exe", exe, sizeof exe - 1);
    CHECK(length > 0);
    exe[length] = 0;
    char *base = strrchr(argv[0], '/');
    base = base ? base + 1 : argv[0];
    printf("exe %d\n", strcmp(strrchr(exe, '/') + 1, base) == 0);
    char by_pid[64];
    sprintf(by_pid, "/proc/%d/exe", getpid());
    length = readlink(by_pid, text, sizeof text);
    printf("exe by pid %d\n", length == (long)strlen(exe) && memcmp(text, exe, length) == 0);

    length = slurp("/proc/self/cmdline", text, sizeof text);
    char *second = text + strlen(text) + 1;
    printf("cmdline %d %s %s\n", strcmp(text, argv[0]) == 0, second, second + strlen(second) + 1);
    slurp("/proc/self/comm", text, sizeof text);
    text[strcspn(text, "\n")] = 0;
    prctl(PR_GET_NAME, comm);
    printf("comm %d %d\n", strncmp(text, base, 15) == 0, strncmp(comm, base, 15) == 0);

    char *code = (char *)(unsigned long)&main, *data = (char *)&writable_data, *heap = malloc(100);
    char local, *mine = pages(3, PROT_READ);
    slurp("/proc/self/maps", text, sizeof text);
    int found = 0, foreign = 0, both = 0, ordered = 1;
    unsigned long before = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long start, end;
        char rights[8], name[4096] = "";
        CHECK(sscanf(line, "%lx-%lx %7s %*s %*s %*s %4095s", &start, &end, rights, name) >= 3);
        ordered &= start >= before && end > start;
        before = end;
#define HOLDS(p) ((unsigned long)(p) >= start && (unsigned long)(p) < end)
        if (HOLDS(code) && !strcmp(rights, "r-xp") && !strcmp(name, exe)) found |= 1;
        if (HOLDS(data) && !strcmp(rights, "rw-p") && !strcmp(name, exe)) found |= 2;
        if (HOLDS(heap) && !strcmp(rights, "rw-p") && !strcmp(name, "[heap]")) found |= 4;
        if (HOLDS(&local) && !strcmp(rights, "rw-p") && !strcmp(name, "[stack]")) found |= 8;
        if (HOLDS(mine) && HOLDS(mine + 3 * 4096 - 1) && !strncmp(rights, "r--p", 4)) found |= 16;
        if (!strcmp(name, "[vdso]") && !strcmp(rights, "r-xp")) found |= 32;
        if (strstr(name, "libc.so") && !strcmp(rights, "r-xp")) found |= 64;
        if (strstr(name, "memfd:") || (strstr(name, "temper") && !strstr(exe, "temper"))) foreign++;
        if (rights[1] == 'w' && rights[2] == 'x') both++;
    }
    printf("found %x foreign %d writable and executable %d ordered %d\n", found, foreign, both, ordered);
    return 0;
}
