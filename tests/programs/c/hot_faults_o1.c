// flags: -O1 -fno-omit-frame-pointer -static -no-pie -w
#include "hot_faults.c"
