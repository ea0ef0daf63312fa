// flags: -O2 -std=c++17
// C++ exceptions: through deep frames with destructors, thrown by libstdc++ itself, through
// C library frames (qsort), rethrown, nested, from a signal handler's fault, in a hot loop.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

static long destroyed;
struct Guard {
    ~Guard() { destroyed++; }
};

static __attribute__((noinline)) int down(int n, int kind) {
    Guard guard;
    if (n == 0) {
        switch (kind) {
        case 0: throw 42;
        case 1: throw std::runtime_error("deep");
        case 2: return std::vector<int>(3).at(7);
        case 3: return std::stoi("not a number");
        default: throw std::string(100, 'x');
        }
    }
    return down(n - 1, kind) + 1;
}

static int compare(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    if (x + y == 13)
        throw std::logic_error("thirteen");
    return x - y;
}

static void faulting(int) { throw std::domain_error("from a handler"); }

int main() {
    long ints = 0, runtime = 0, range = 0, invalid = 0, strings = 0;
    for (int i = 0; i < 5000; i++) {
        try {
            down(i % 40, i % 5);
        } catch (int value) {
            ints += value;
        } catch (const std::out_of_range &) {
            range++;
        } catch (const std::invalid_argument &e) {
            invalid += std::string(e.what()) == "stoi";
        } catch (const std::runtime_error &e) {
            runtime++;
        } catch (const std::string &text) {
            strings += text.size();
        }
    }
    std::printf("%ld %ld %ld %ld %ld, %ld destroyed\n", ints, runtime, range, invalid, strings, destroyed);
    try {
        int numbers[] = {9, 1, 4, 7, 6, 2};
        qsort(numbers, 6, sizeof(int), compare);
        std::printf("no exception\n");
    } catch (const std::logic_error &e) {
        std::printf("%s\n", e.what());
    }
    try {
        try {
            down(3, 1);
        } catch (...) {
            std::throw_with_nested(std::logic_error("outer"));
        }
    } catch (const std::exception &e) {
        try {
            std::rethrow_if_nested(e);
        } catch (const std::exception &inner) {
            std::printf("%s of %s\n", e.what(), inner.what());
        }
    }
    // The unwinder recognises the signal frame by its restorer (-fnon-call-exceptions isn't
    // needed for a throw at a call).
    std::signal(SIGUSR1, faulting);
    try {
        Guard guard;
        // Through a pointer: raise itself is declared not to throw.
        int (*volatile send)(int) = std::raise;
        send(SIGUSR1);
    } catch (const std::domain_error &e) {
        std::printf("%s\n", e.what());
    }
    std::set_terminate([] {
        std::printf("terminate\n");
        std::fflush(stdout);
        std::_Exit(17);
    });
    throw 1;
}
