// flags: -O2 -static
// Code that is mapped over, in a program that is linked otherwise.
#include "smc_map.c"
