// flags: -O1 -mno-red-zone -pthread
// heavy
// optional
// args: 1000000
#include "storm_threads.c"
