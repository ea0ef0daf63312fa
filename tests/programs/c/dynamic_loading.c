// flags: -O1 -ldl -rdynamic -D_GNU_SOURCE
// dlopen of a library that isn't there from the start, calls through it, callbacks from it,
// lookups in the program itself, errors, closing.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int exported(int x) { return x * 3; }

int main(void) {
    for (int round = 0; round < 5; round++) {
        void *math = dlopen("libm.so.6", RTLD_NOW | RTLD_LOCAL);
        if (!math) {
            printf("skipped: no libm.so.6\n");
            return 0;
        }
        double (*cosine)(double) = (double (*)(double))dlsym(math, "cos");
        double (*power)(double, double) = (double (*)(double, double))dlsym(math, "pow");
        double sum = 0;
        for (int i = 0; i < 20000; i++)
            sum += cosine(i) * power(1.0001, i % 100);
        printf("%.9f\n", sum);
        dlclose(math);
    }
    void *self = dlopen(NULL, RTLD_LAZY);
    int (*mine)(int) = (int (*)(int))dlsym(self, "exported");
    int (*print)(const char *, ...) = (int (*)(const char *, ...))dlsym(RTLD_DEFAULT, "printf");
    print("%d\n", mine(14));
    Dl_info info;
    int known = dladdr((void *)mine, &info) != 0;
    printf("%d %s\n", known, info.dli_sname);
    printf("%d\n", dlopen("libnot-there.so", RTLD_NOW) == NULL && strstr(dlerror(), "not-there") != NULL);
    printf("%d\n", dlsym(self, "no_such_symbol") == NULL);
    return 0;
}
