// flags: -O1
// Every way in which execve fails, one line each: the caller goes on and learns why.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *const no_args[] = {"x", NULL};
static char *const no_env[] = {NULL};

static void said(const char *what, long result) {
    printf("%s: %ld %s\n", what, result, result < 0 ? strerrorname_np(errno) : "");
    fflush(stdout);
}

static void try(const char *what, const char *path) {
    said(what, syscall(SYS_execve, path, no_args, no_env));
}

static void try_at(const char *what, int fd, const char *path, int flags) {
    said(what, syscall(SYS_execveat, fd, path, no_args, no_env, flags));
}

static void make(const char *path, const void *bytes, size_t len, int mode) {
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (write(fd, bytes, len) != (ssize_t)len) perror(path);
    fchmod(fd, mode);
    close(fd);
}

static void script(const char *path, const char *text) {
    make(path, text, strlen(text), 0755);
}

// A program header table with one PT_INTERP, or what `machine` and `interpreter` make of it.
static void elf(const char *path, int machine, int type, const char *interpreter) {
    struct {
        Elf64_Ehdr header;
        Elf64_Phdr program[2];
        char name[64];
    } file = {
        .header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                   .e_type = type,
                   .e_machine = machine,
                   .e_version = EV_CURRENT,
                   .e_phoff = sizeof(Elf64_Ehdr),
                   .e_ehsize = sizeof(Elf64_Ehdr),
                   .e_phentsize = sizeof(Elf64_Phdr),
                   .e_phnum = interpreter ? 2 : 1},
    };
    file.program[0] = (Elf64_Phdr){.p_type = PT_LOAD, .p_flags = PF_R | PF_X, .p_align = 4096,
                                   .p_filesz = sizeof file, .p_memsz = sizeof file};
    if (interpreter) {
        strcpy(file.name, interpreter);
        file.program[1] = (Elf64_Phdr){.p_type = PT_INTERP, .p_flags = PF_R,
                                       .p_offset = (char *)file.name - (char *)&file,
                                       .p_filesz = strlen(interpreter) + 1, .p_memsz = 64};
    }
    make(path, &file, sizeof file, 0755);
}

int main(void) {
    char long_name[5000];
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;

    try("nothing there", "nothing-there");
    try("no name", "");
    try("a name that can't be read", (char *)8);
    try("a name too long", long_name);
    long_name[300] = 0;
    try("a part too long", long_name);
    try("a folder", "tree");
    try("below a file", "text/x");
    try("not executable", "text");
    symlink("loop", "loop");
    try("a link to itself", "loop");
    mkfifo("fifo", 0755);
    try("a fifo", "fifo");
    unlink("fifo");
    try("a device", "/dev/null");
    make("empty", "", 0, 0755);
    try("an empty file", "empty");
    make("plain", "echo hello\n", 11, 0755);
    try("text", "plain");

    script("bare", "#!\n");
    try("a script without an interpreter", "bare");
    script("missing", "#!/nonexistent/interpreter\n");
    try("a script's interpreter is missing", "missing");
    script("folder", "#!/usr\n");
    try("a script's interpreter is a folder", "folder");
    script("textual", "#!./plain\n");
    try("a script's interpreter is text", "textual");
    script("self", "#!./self\n");
    try("a script that runs itself", "self");

    elf("other", EM_AARCH64, ET_DYN, NULL);
    try("another machine's program", "other");
    elf("object", EM_X86_64, ET_REL, NULL);
    try("an object file", "object");
    elf("lonely", EM_X86_64, ET_DYN, "/nonexistent/ld.so");
    try("a loader that is missing", "lonely");
    elf("textual-loader", EM_X86_64, ET_DYN, "./loader");
    char text[4096] = "this is no loader";
    make("loader", text, sizeof text, 0755);
    try("a loader that is text", "textual-loader");
    elf("loader", EM_AARCH64, ET_DYN, NULL);
    try("a loader for another machine", "textual-loader");
    make("loader", text, sizeof text, 0644);
    try("a loader that isn't executable", "textual-loader");
    make("short", "\177ELF\2\1\1", 7, 0755);
    try("a file header cut off", "short");

    int busy = open("busy", O_CREAT | O_RDWR, 0755);
    if (write(busy, "#!/bin/true\n", 12) != 12) return 9;
    try("open for writing", "busy");
    close(busy);

    said("arguments that can't be read", syscall(SYS_execve, "/bin/true", (char **)8, no_env));
    said("an environment that can't be read", syscall(SYS_execve, "/bin/true", no_args, (char **)8));
    char *bad[] = {"x", (char *)8, NULL};
    said("an argument that can't be read", syscall(SYS_execve, "/bin/true", bad, no_env));
    size_t huge = 200 << 10;
    char *block = malloc(huge);
    memset(block, 'x', huge - 1);
    block[huge - 1] = 0;
    char *big[] = {"x", block, NULL};
    said("an argument too long", syscall(SYS_execve, "/bin/true", big, no_env));
    block[100 << 10] = 0;
    char **many = malloc(sizeof *many * 101);
    for (int i = 0; i < 100; i++) many[i] = block;
    many[100] = NULL;
    said("too many bytes of arguments", syscall(SYS_execve, "/bin/true", many, no_env));
    said("too many bytes of environment", syscall(SYS_execve, "/bin/true", no_args, many));

    int folder = open("tree", O_RDONLY | O_DIRECTORY);
    int kept = open("plain", O_RDONLY), path_only = open("plain", O_PATH);
    symlink("/bin/true", "link");
    try_at("no such descriptor", 99, "x", 0);
    try_at("no such descriptor, no name", 99, "", AT_EMPTY_PATH);
    try_at("no name", kept, "", 0);
    try_at("a descriptor of text", kept, "", AT_EMPTY_PATH);
    try_at("a path descriptor of text", path_only, "", AT_EMPTY_PATH);
    try_at("a folder's descriptor", folder, "", AT_EMPTY_PATH);
    try_at("below a descriptor", folder, "one.txt", 0);
    try_at("missing below a descriptor", folder, "none", 0);
    try_at("below a descriptor of a file", kept, "x", 0);
    try_at("a link not followed", AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW);
    try_at("unknown flags", AT_FDCWD, "link", 0x40000000);
    script("works", "#!/bin/true\n");
    int closing = open("works", O_RDONLY | O_CLOEXEC);
    try_at("a script whose descriptor closes", closing, "", AT_EMPTY_PATH);

    // After all of it: nothing lost, nothing left over.
    int lowest = dup(0);
    printf("lowest free descriptor %d\n", lowest);
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    printf("blocked: %d\n", sigisemptyset(&set) ? 0 : 1);
    raise(SIGUSR1);
    return 1;
}
