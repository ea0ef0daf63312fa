// flags: -O2 -static -no-pie
// The calls about signals, in a program that is linked otherwise.
#include "signal_calls.c"
