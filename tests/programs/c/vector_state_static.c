// flags: -O1 -static-pie
// Vector state across handlers, in a program that is linked otherwise.
#include "vector_state.c"
