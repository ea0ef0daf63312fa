// flags: -O2 -mno-red-zone -no-pie
// The kinds of faults, in a program that is linked otherwise.
#include "fault_kinds.c"
