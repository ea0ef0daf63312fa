/* Compute kernels of several characters, for every optimization level: what a program
 * that is hot in its own code looks like. `kernels NAME ROUNDS` prints a checksum;
 * `kernels all ROUNDS` runs each. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t seed = 2463534242u;

static uint32_t number(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

/* Floating point in three nested loops. */
static uint64_t matrix(void)
{
    enum { N = 96 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (i * 7 + j) % 13;
            b[i][j] = (i + j * 5) % 11;
            c[i][j] = 0;
        }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            for (int k = 0; k < N; k++) c[i][j] += a[i][k] * b[k][j];
    double sum = 0;
    for (int i = 0; i < N; i++) sum += c[i][(i * 31) % N];
    return (uint64_t)sum;
}

/* Table lookups, one dependent chain. */
static uint64_t checksum(void)
{
    static uint32_t table[256];
    static unsigned char data[40000];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (0xedb88320u & -(value & 1));
        table[i] = value;
    }
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * i >> 3);
    uint32_t crc = ~0u;
    for (int pass = 0; pass < 8; pass++)
        for (size_t i = 0; i < sizeof data; i++) crc = table[(crc ^ data[i]) & 255] ^ crc >> 8;
    return ~crc;
}

/* Pointers, recursion, unpredictable branches. */
struct node {
    struct node *left, *right;
    uint32_t key;
};

static uint32_t height(const struct node *node)
{
    if (!node) return 0;
    uint32_t left = height(node->left), right = height(node->right);
    return 1 + (left > right ? left : right);
}

static uint64_t tree(void)
{
    enum { N = 6000 };
    static struct node nodes[N];
    struct node *root = NULL;
    for (int i = 0; i < N; i++) {
        nodes[i] = (struct node){NULL, NULL, number()};
        struct node **at = &root;
        while (*at) at = nodes[i].key < (*at)->key ? &(*at)->left : &(*at)->right;
        *at = &nodes[i];
    }
    uint64_t found = 0;
    for (int i = 0; i < N; i++) {
        const struct node *at = root;
        uint32_t key = i & 1 ? nodes[i].key : number();
        while (at && at->key != key) at = key < at->key ? at->left : at->right;
        found += at != NULL;
    }
    return found * 1000 + height(root);
}

/* An interpreter: a switch in a loop, the indirect branch of every byte code. */
enum { PUSH, ADD, MUL, DUP, SWAP, LOOP, STORE, LOAD, END };

static uint64_t machine(void)
{
    static const unsigned char program[] = {PUSH, 1, STORE, 0, PUSH, 200, STORE, 1, LOAD, 0, PUSH, 3, MUL, PUSH, 7,
                                            ADD,  DUP, SWAP, ADD, STORE, 0, LOOP, 1, 8, LOAD, 0, END};
    uint64_t total = 0;
    for (int run = 0; run < 120; run++) {
        uint64_t stack[16] = {0}, slots[4] = {0};
        int depth = 0, at = 0;
        for (;;) {
            switch (program[at++]) {
            case PUSH: stack[depth++] = program[at++]; continue;
            case ADD: depth--; stack[depth - 1] += stack[depth]; continue;
            case MUL: depth--; stack[depth - 1] *= stack[depth]; continue;
            case DUP: stack[depth] = stack[depth - 1]; depth++; continue;
            case SWAP: {
                uint64_t top = stack[depth - 1];
                stack[depth - 1] = stack[depth - 2];
                stack[depth - 2] = top;
                continue;
            }
            case STORE: slots[program[at++]] = stack[--depth]; continue;
            case LOAD: stack[depth++] = slots[program[at++]]; continue;
            case LOOP:
                if (--slots[program[at]]) at = program[at + 1];
                else at += 2;
                continue;
            case END: total += stack[depth - 1]; break;
            }
            break;
        }
    }
    return total;
}

/* Calls through a pointer: the library's sort with a comparison of ours. */
static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint64_t sort(void)
{
    enum { N = 12000 };
    static uint32_t values[N];
    for (int i = 0; i < N; i++) values[i] = number();
    qsort(values, N, sizeof *values, compare);
    return values[N / 2];
}

/* Bytes: tokens of a text, counted in a hash table. */
static uint64_t tokens(void)
{
    static char text[30000];
    static uint32_t counts[1024];
    for (size_t i = 0; i < sizeof text; i++) text[i] = "etaoin shrdlu,.\n"[number() >> 28];
    uint32_t hash = 5381;
    uint64_t kept = 0;
    memset(counts, 0, sizeof counts);
    for (size_t i = 0; i < sizeof text; i++) {
        char c = text[i];
        if (c >= 'a' && c <= 'z') hash = hash * 33 ^ (unsigned char)c;
        else {
            if (hash != 5381 && counts[hash % 1024]++ == 3) kept++;
            hash = 5381;
        }
    }
    return kept;
}

/* 64-bit arithmetic with carries and wide products. */
static uint64_t modular(void)
{
    const uint64_t modulus = 0xffffffffffffffc5u;
    uint64_t power = 1, base = 3;
    for (int i = 0; i < 6000; i++) {
        power = (uint64_t)((unsigned __int128)power * base % modulus);
        base += i;
    }
    return power;
}

static const struct {
    const char *name;
    uint64_t (*run)(void);
    int weight;
} kernels[] = {
    {"matrix", matrix, 6}, {"checksum", checksum, 6}, {"tree", tree, 4}, {"machine", machine, 12},
    {"sort", sort, 5},     {"tokens", tokens, 20},    {"modular", modular, 20},
};

int main(int argc, char **argv)
{
    const char *wanted = argc > 1 ? argv[1] : "all";
    int rounds = argc > 2 ? atoi(argv[2]) : 1;
    int known = 0;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        if (strcmp(wanted, "all") && strcmp(wanted, kernels[i].name)) continue;
        uint64_t sum = 0;
        for (int round = 0; round < rounds * kernels[i].weight; round++) sum = sum * 31 + kernels[i].run();
        printf("%-10s %016llx\n", kernels[i].name, (unsigned long long)sum);
        known = 1;
    }
    if (!known) fprintf(stderr, "kernels: no kernel `%s`\n", wanted);
    return !known;
}
