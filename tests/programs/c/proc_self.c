// flags: -O1 -pthread
// What a program finds out about itself: /proc/self, the auxiliary vector, its stack.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int data = 1;
extern char **environ;

static char *slurp(const char *path, size_t *length) {
    static char text[1 << 20];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count, total = 0;
    while (fd >= 0 && (count = read(fd, text + total, sizeof text - 1 - total)) > 0)
        total += count;
    if (fd >= 0)
        close(fd);
    text[total] = 0;
    if (length)
        *length = total;
    return text;
}

// The permissions and name of the mapping that holds an address.
static void where(const char *what, const void *address) {
    char *text = slurp("/proc/self/maps", NULL), *line = strtok(text, "\n");
    for (; line; line = strtok(NULL, "\n")) {
        unsigned long start, end;
        char prot[8], name[256] = "";
        sscanf(line, "%lx-%lx %7s %*s %*s %*s %255s", &start, &end, prot, name);
        if ((uintptr_t)address >= start && (uintptr_t)address < end) {
            char *slash = strrchr(name, '/');
            printf("%s: %s %s\n", what, prot, slash ? slash + 1 : name);
            return;
        }
    }
    printf("%s: nowhere\n", what);
}

static void stat_exe(const char *path) {
    struct stat a, b;
    int same = stat(path, &a) == 0 && stat(getauxval(AT_EXECFN) ? (char *)getauxval(AT_EXECFN) : "", &b) == 0
        && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
    printf("%s is the program: %d\n", strncmp(path, "/proc/self", 10) ? "by number" : path, same);
}

static __attribute__((noinline)) int deep(int levels) {
    volatile char room[65536];
    room[0] = levels;
    room[65535] = levels;
    return levels ? deep(levels - 1) + room[65535] : room[0];
}

int main(int argc, char **argv) {
    char link[4096], path[64];
    ssize_t length = readlink("/proc/self/exe", link, sizeof link);
    char *real = realpath((char *)getauxval(AT_EXECFN), NULL);
    printf("exe leads to the program: %d\n", length > 0 && (size_t)length == strlen(real) && !memcmp(link, real, length));
    printf("cut: %zd, bad buffer %d, bad size %d\n", readlink("/proc/self/exe", link, 3),
           readlink("/proc/self/exe", (char *)8, 8) < 0 && errno == EFAULT, syscall(SYS_readlink, "/proc/self/exe", link, 0) < 0 && errno == EINVAL);
    snprintf(path, sizeof path, "/proc/%d/exe", getpid());
    printf("by number: %d\n", readlink(path, link, sizeof link) == length);
    snprintf(path, sizeof path, "/proc/%d/task/%d/exe", getpid(), getpid());
    stat_exe(path);
    stat_exe("/proc/self/exe");
    stat_exe("/proc/thread-self/exe");
    int fd = open("/proc/self/exe", O_RDONLY), folder = open("/proc/self", O_RDONLY | O_DIRECTORY | O_PATH);
    char magic[4] = "";
    printf("its content: %zd %d\n", read(fd, magic, 4), !memcmp(magic, "\177ELF", 4));
    printf("relative to /proc/self: %d\n", readlinkat(folder, "exe", link, sizeof link) == length);
    printf("access %d\n", access("/proc/self/exe", X_OK));
    close(fd);
    close(folder);

    size_t size;
    char *text = slurp("/proc/self/cmdline", &size);
    size_t expected = 0;
    for (int i = 0; i < argc; i++)
        expected += strlen(argv[i]) + 1;
    printf("cmdline: %d\n", size == expected && !strcmp(text, argv[0]));
    text = slurp("/proc/self/environ", &size);
    printf("environ: %d\n", !strcmp(text, environ[0] ? environ[0] : ""));
    text = slurp("/proc/self/comm", &size);
    printf("comm: %.15s", text);
    prctl(PR_SET_NAME, "another");
    printf("renamed: %s", slurp("/proc/self/comm", &size));
    text = slurp("/proc/self/auxv", &size);
    uint64_t *pairs = (uint64_t *)text;
    int agrees = size % 16 == 0;
    for (size_t i = 0; i + 1 < size / 8 && pairs[i]; i += 2)
        if (pairs[i] != AT_HWCAP && getauxval(pairs[i]) != pairs[i + 1])
            agrees = 0;
    printf("auxv agrees: %d\n", agrees);
    printf("platform %s, page %ld, secure %ld, flags %ld, phent %ld, ticks %ld\n", (char *)getauxval(AT_PLATFORM), getauxval(AT_PAGESZ),
           getauxval(AT_SECURE), getauxval(AT_FLAGS), getauxval(AT_PHENT), getauxval(AT_CLKTCK));
    printf("hwcap %lx %lx uid %ld %ld\n", getauxval(AT_HWCAP), getauxval(AT_HWCAP2), getauxval(AT_UID), getauxval(AT_EGID));
    printf("random %d\n", *(uint64_t *)getauxval(AT_RANDOM) != 0);
    const Elf64_Phdr *headers = (void *)getauxval(AT_PHDR);
    printf("headers: %ld, first %d\n", getauxval(AT_PHNUM), headers[0].p_type);

    where("code", main);
    where("data", &data);
    where("constant", "text");
    where("heap", malloc(10));
    where("stack", &length);
    where("libc", (void *)getauxval(AT_BASE));
    where("vdso", (void *)getauxval(AT_SYSINFO_EHDR));
    void *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    where("no access", none);
    mprotect(none, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    where("all access", none);
    mprotect(none, 4096, PROT_EXEC);
    where("execute only", none);
    void *shared = mmap(NULL, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    where("shared", shared);
    munmap(shared, 4096);
    printf("no Temper: %d\n", strstr(slurp("/proc/self/maps", NULL), "temper") == NULL);
    text = slurp("/proc/self/smaps", NULL);
    printf("smaps: %d %d %d\n", strstr(text, "[heap]") != NULL, strstr(text, "Rss:") != NULL, strstr(text, "VmFlags:") != NULL);

    pthread_attr_t attributes;
    void *stack;
    size_t stack_size;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &stack_size);
    struct rlimit limit;
    getrlimit(RLIMIT_STACK, &limit);
    printf("stack holds a local: %d\n", (char *)&limit > (char *)stack && (char *)&limit < (char *)stack + stack_size);
    printf("stack size: %d\n", limit.rlim_cur == RLIM_INFINITY || (stack_size <= limit.rlim_cur && stack_size > limit.rlim_cur / 2));
    printf("deep: %d\n", deep(90) > 0);
    limit.rlim_cur = 64 << 20;
    if (setrlimit(RLIMIT_STACK, &limit) == 0)
        printf("deeper: %d\n", deep(700) != 12345);
    struct rlimit space = {1UL << 32, RLIM_INFINITY}, back;
    printf("limit the address space: %d", setrlimit(RLIMIT_AS, &space));
    getrlimit(RLIMIT_AS, &back);
    printf(" %d", back.rlim_cur == space.rlim_cur);
    printf(" %d", mmap(NULL, 1UL << 30, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    printf(" %d\n", mmap(NULL, 4UL << 30, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    printf("personality %x\n", personality(0xffffffff) & ~ADDR_NO_RANDOMIZE);
    return 0;
}
