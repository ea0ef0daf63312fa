// flags: -O1
// args: a bb ccc --flag=value -x - -- "quoted" * ? [z] $HOME `x` \back ; | & > < ~ ! # % @ + = , . : / {a,b} (p) 'q' ^ _ 0 1 2 3 4 5 6 7 8 9 loooooooooooooooooooooooooooooooooooooooooooooooooooong
// Arguments arrive as they are, and the environment too (Temper's own variables aside).
#include <stdio.h>
#include <string.h>

extern char **environ;

static unsigned long hash(unsigned long h, const char *s) {
    do
        h = (h ^ (unsigned char)*s) * 1099511628211ul;
    while (*s++);
    return h;
}

int main(int argc, char **argv) {
    unsigned long arguments = 1469598103934665603ul, environment = arguments;
    for (int i = 1; i < argc; i++)
        arguments = hash(arguments, argv[i]);
    for (char **e = environ; *e; e++)
        if (strncmp(*e, "TEMPER", 6) != 0)
            environment = hash(environment, *e);
    printf("%d arguments %016lx, environment %016lx\n", argc, arguments, environment);
    printf("%s %s\n", argv[1], argv[argc - 1]);
    return argc;
}
