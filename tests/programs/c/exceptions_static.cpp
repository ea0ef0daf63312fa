// flags: -O2 -std=c++17 -static
// heavy
// Exceptions, in a program that is linked otherwise.
#include "exceptions.cpp"
