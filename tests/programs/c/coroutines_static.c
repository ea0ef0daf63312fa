// flags: -O2 -static-pie -Wno-infinite-recursion -Wno-clobbered
// Coroutines, in a program that is linked otherwise.
#include "coroutines.c"
