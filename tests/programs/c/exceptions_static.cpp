// flags: -O2 -std=c++17 -static
// Exceptions, in a program that is linked otherwise.
#include "exceptions.cpp"
