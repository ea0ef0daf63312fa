// flags: -O1
// args: exit
#include "seccomp_strict.c"
