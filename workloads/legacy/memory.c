/* Programs that wait for memory: `memory random|join|gather ROUNDS`. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 88172645463325252u;

static uint64_t number(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Reads and writes all over 1 GiB. */
static uint64_t anywhere(int rounds)
{
    size_t count = (size_t)1 << 27;
    uint64_t *cells = calloc(count, sizeof *cells);
    for (size_t i = 0; i < count; i += 512) cells[i] = i;
    uint64_t sum = 0;
    for (int i = 0; i < rounds * 1000000; i++) {
        uint64_t *cell = &cells[number() & (count - 1)];
        sum += *cell;
        *cell = sum;
    }
    return sum;
}

struct entry {
    uint64_t key, value;
};

/* A hash table of one side, looked up by the other. */
static uint64_t join(int rounds)
{
    size_t count = (size_t)1 << 24;
    struct entry *entries = calloc(count, sizeof *entries);
    for (size_t i = 0; i < count / 4; i++) {
        uint64_t key = i * 0x9e3779b97f4a7c15u | 1;
        size_t at = key >> 40;
        while (entries[at].key) at = (at + 1) & (count - 1);
        entries[at] = (struct entry){key, i};
    }
    uint64_t sum = 0;
    for (int i = 0; i < rounds * 1000000; i++) {
        uint64_t key = number() % (count / 2) * 0x9e3779b97f4a7c15u | 1;
        size_t at = key >> 40;
        while (entries[at].key && entries[at].key != key) at = (at + 1) & (count - 1);
        sum += entries[at].value;
    }
    return sum;
}

/* What is gathered goes through much work and an unpredictable branch. */
static uint64_t gather(int rounds)
{
    size_t count = (size_t)1 << 26, steps = (size_t)1 << 22;
    uint64_t *cells = malloc(count * sizeof *cells);
    uint32_t *order = malloc(steps * sizeof *order);
    for (size_t i = 0; i < count; i++) cells[i] = i * 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < steps; i++) order[i] = number() & (count - 1);
    uint64_t sum = 0;
    for (int round = 0; round < rounds; round++)
        for (size_t i = 0; i < steps; i++) {
            uint64_t value = cells[order[i]];
            for (int k = 0; k < 12; k++) value = (value ^ value >> 29) * 0xbf58476d1ce4e5b9u;
            if (value & 1) sum += value / (i + 1);
            else sum ^= value;
        }
    return sum;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    int rounds = argc > 2 ? atoi(argv[2]) : 1;
    uint64_t (*run)(int) = !strcmp(name, "random") ? anywhere : !strcmp(name, "join") ? join : !strcmp(name, "gather") ? gather : NULL;
    if (!run) return fputs("usage: memory random|join|gather ROUNDS\n", stderr), 1;
    printf("%s %016llx\n", name, (unsigned long long)run(rounds));
    return 0;
}
