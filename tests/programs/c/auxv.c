// flags: -O1
// args: one two
// The auxiliary vector, by libc and by /proc/self/auxv, agrees with the program: headers,
// entry, interpreter, random bytes, file name, vdso. Addresses are checked, not printed.
#include "fault.h"
#include <elf.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/stat.h>

extern void _start(void);
extern char __ehdr_start[];
extern char **environ;

int main(int argc, char **argv) {
    Elf64_Ehdr *header = (Elf64_Ehdr *)__ehdr_start;
    printf("entry %d\n", getauxval(AT_ENTRY) == (unsigned long)_start);
    printf("phdr %d phnum %d phent %lu\n", getauxval(AT_PHDR) == (unsigned long)header + header->e_phoff,
           getauxval(AT_PHNUM) == header->e_phnum, getauxval(AT_PHENT));
    Elf64_Ehdr *interpreter = (Elf64_Ehdr *)getauxval(AT_BASE);
    printf("interpreter %d\n", memcmp(interpreter, ELFMAG, 4) == 0 && interpreter->e_type == ET_DYN);
    printf("page %lu clock %lu flags %lx\n", getauxval(AT_PAGESZ), getauxval(AT_CLKTCK), getauxval(AT_FLAGS));
    printf("uid %d euid %d gid %d secure %lu\n", getauxval(AT_UID) == getuid(), getauxval(AT_EUID) == geteuid(),
           getauxval(AT_GID) == getgid(), getauxval(AT_SECURE));
    printf("hwcap %lx hwcap2 %lx minsigstksz %lu\n", getauxval(AT_HWCAP), getauxval(AT_HWCAP2), getauxval(AT_MINSIGSTKSZ));
    printf("platform %s\n", (char *)getauxval(AT_PLATFORM));
    printf("execfn is argv[0] %d\n", strcmp((char *)getauxval(AT_EXECFN), argv[0]) == 0);
    unsigned char *random = (unsigned char *)getauxval(AT_RANDOM), any = 0;
    for (int i = 0; i < 16; i++)
        any |= random[i];
    printf("random %d, on the stack %d\n", any != 0, (char *)random > (char *)environ);
    Elf64_Ehdr *vdso = (Elf64_Ehdr *)getauxval(AT_SYSINFO_EHDR);
    printf("vdso %d\n", vdso && memcmp(vdso, ELFMAG, 4) == 0);
    // The vector follows the environment, and the kernel's copy is the same.
    char **end = environ;
    while (*end)
        end++;
    Elf64_auxv_t *onstack = (Elf64_auxv_t *)(end + 1), saved[64];
    int fd = open("/proc/self/auxv", O_RDONLY);
    ssize_t bytes = read(fd, saved, sizeof saved);
    printf("kernel's copy %d\n", bytes > 64 && memcmp(saved, onstack, bytes) == 0);
    int kinds = 0;
    for (Elf64_auxv_t *a = onstack; a->a_type != AT_NULL; a++)
        kinds++;
    printf("entries %d\n", bytes == (kinds + 1) * 16);
    printf("argc %d %s %s, aligned %d\n", argc, argv[1], argv[2], ((unsigned long)&argv[-1] & 15) == 0);
    return 0;
}
