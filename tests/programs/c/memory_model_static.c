// flags: -O2 -static -no-pie
// The memory map against a model (brk after the image), in a program that is linked otherwise.
#include "memory_model.c"
