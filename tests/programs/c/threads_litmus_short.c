// flags: -O2 -pthread
// args: 500
// Few enough rounds for the interpreter.
#include "threads_litmus.c"
