// flags: -O1 -mno-red-zone -static
// The kinds of faults, in a program that is linked otherwise.
#include "fault_kinds.c"
