// flags: -O2 -pthread
// The C++ library's threads: futures, exceptions through them, thread_local objects.
#include <condition_variable>
#include <cstdio>
#include <future>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

struct Counted {
    static inline std::atomic<int> made{0}, gone{0};
    std::string text = "thread-local";
    Counted() { made++; }
    ~Counted() { gone++; }
};
static thread_local Counted counted;

static long fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

int main() {
    std::vector<std::future<long>> futures;
    for (int n = 10; n < 20; n++)
        futures.push_back(std::async(std::launch::async, fibonacci, n));
    long sum = 0;
    for (auto &future : futures)
        sum += future.get();
    std::printf("futures %ld\n", sum);

    auto failing = std::async(std::launch::async, []() -> int { throw std::runtime_error("from a thread"); });
    try {
        failing.get();
    } catch (const std::runtime_error &error) {
        std::printf("caught: %s\n", error.what());
    }

    std::mutex mutex;
    std::condition_variable turn;
    int next = 0;
    std::map<int, std::string> said;
    std::vector<std::thread> threads;
    for (int id = 0; id < 8; id++)
        threads.emplace_back([&, id] {
            std::unique_lock lock(mutex);
            turn.wait(lock, [&] { return next == id; });
            said[id] = counted.text + " " + std::to_string(id);
            next++;
            turn.notify_all();
        });
    for (auto &thread : threads)
        thread.join();
    for (auto &[id, text] : said)
        std::printf("%d: %s\n", id, text.c_str());
    std::printf("made %d, gone %d\n", Counted::made.load(), Counted::gone.load());
    return 0;
}
