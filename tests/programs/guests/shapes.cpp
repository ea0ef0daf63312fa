// Virtual calls, exceptions through many frames, containers, streams, thread-local state.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

struct Shape {
    virtual ~Shape() = default;
    virtual double area() const = 0;
    virtual std::string name() const = 0;
};
struct Circle : Shape {
    explicit Circle(double r) : radius(r) {}
    double area() const override { return 3.141592653589793 * radius * radius; }
    std::string name() const override { return "circle"; }
    double radius;
};
struct Box : virtual Shape {
    Box(double w, double h) : width(w), height(h) {}
    double area() const override { return width * height; }
    std::string name() const override { return "box"; }
    double width, height;
};

struct Guard {
    explicit Guard(int *at) : place(at) { ++*place; }
    ~Guard() { --*place; }
    int *place;
};
static thread_local int depth;

static int descend(int levels)
{
    Guard guard(&depth);
    if (levels == 0) throw std::runtime_error("bottom at " + std::to_string(depth));
    return descend(levels - 1) + 1;
}

int main(int argc, char **argv)
{
    int seed = argc > 1 ? std::atoi(argv[1]) : 1;
    std::vector<std::unique_ptr<Shape>> shapes;
    for (int i = 1; i < 200; i++) {
        if (i * seed % 3) shapes.push_back(std::make_unique<Circle>(i * 0.5));
        else shapes.push_back(std::make_unique<Box>(i, i + 1.5));
    }
    std::sort(shapes.begin(), shapes.end(), [](const auto &a, const auto &b) { return a->area() < b->area(); });
    std::map<std::string, double> totals;
    for (const auto &shape : shapes) totals[shape->name()] += shape->area();
    for (const auto &[name, total] : totals) std::cout << name << ' ' << std::setprecision(10) << total << '\n';

    int caught = 0;
    for (int i = 0; i < 50; i++) {
        try {
            descend(i);
        } catch (const std::exception &error) {
            caught++;
            if (i % 25 == 0) std::cout << error.what() << " now " << depth << '\n';
        }
    }
    std::cout << caught << " caught\n";
    try {
        std::vector<int>(3).at(static_cast<size_t>(seed) + 3);
    } catch (const std::out_of_range &) {
        std::cout << "out of range\n";
    }
    std::unordered_map<std::string, int> seen;
    for (int i = 0; i < 5000; i++) seen["key" + std::to_string(i * seed % 977)]++;
    int most = 0;
    for (const auto &entry : seen) most = std::max(most, entry.second);
    std::function<long(long)> fact = [&](long n) { return n < 2 ? 1 : n * fact(n - 1); };
    std::ostringstream text;
    text << std::hex << fact(20) << ' ' << seen.size() << ' ' << std::dec << most << ' ' << std::fmod(1e10, 7.5);
    std::cout << text.str() << std::endl;
    return seed;
}
