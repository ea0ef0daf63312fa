// flags: -O1 -no-pie
// heavy
// Registers at asynchronous signals, in a program that is linked otherwise.
#include "async_registers.c"
