/* Makes the inputs of the benchmark, the same bytes everywhere:
 *   generate text BYTES     prose, log lines and tables, about as compressible as such are
 *   generate source COUNT   a C file of COUNT functions of several kinds, for a compiler
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 88172645463325252u;

/* Marsaglia's xorshift64. */
static uint64_t number(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static unsigned below(unsigned bound) { return (unsigned)((number() >> 20) % bound); }

#define WORDS 4000
static char words[WORDS][12];

static void make_words(void)
{
    static const char *const syllables[] = {"ka", "ri", "to", "sen", "mo", "lu", "ver", "an", "is", "no", "der",
                                            "qui", "sta", "el", "om", "pra", "ti", "bo", "gen", "ur"};
    for (int i = 0; i < WORDS; i++) {
        int parts = 1 + (i > 40) + (i > 400 && below(2));
        words[i][0] = 0;
        while (parts--) strcat(words[i], syllables[below(20)]);
    }
}

/* Frequent words are those with a low number (about Zipf's law). */
static const char *word(void)
{
    unsigned limit = WORDS >> below(9);
    return words[below(limit ? limit : 1)];
}

static long prose(void)
{
    long len = 0;
    int count = 6 + below(12);
    for (int i = 0; i < count; i++) len += printf(i ? " %s" : "%s", word());
    return len + printf(below(5) ? ".\n" : ".\n\n");
}

static long log_line(void)
{
    static long seconds = 1700000000;
    static const char *const levels[] = {"INFO", "INFO", "INFO", "WARN", "DEBUG", "ERROR"};
    seconds += below(4);
    return printf("%ld.%03u [%s] %s.%s: request=%08x took=%uus status=%d\n", seconds, below(1000), levels[below(6)],
                  words[below(30)], words[below(12)], (unsigned)number(), below(90000), below(20) ? 200 : 404);
}

static long row(void)
{
    return printf("%u,%s,%u.%02u,%s,%d\n", below(1000000), word(), below(10000), below(100), words[below(60)],
                  (int)below(200) - 100);
}

static void text(long bytes)
{
    long done = 0;
    make_words();
    while (done < bytes) {
        int kind = below(3), count = 20 + below(200);
        while (count-- && done < bytes) done += kind == 0 ? prose() : kind == 1 ? log_line() : row();
    }
}

static void expression(int depth)
{
    static const char *const operators[] = {"+", "-", "*", "^", "&", "|"};
    if (depth == 0 || below(5) == 0) {
        switch (below(4)) {
        case 0: printf("a"); break;
        case 1: printf("b"); break;
        case 2: printf("%u", below(1000)); break;
        default: printf("table[(a + %u) & 63]", below(64)); break;
        }
        return;
    }
    printf("(");
    expression(depth - 1);
    printf(" %s ", operators[below(6)]);
    expression(depth - 1);
    printf(")");
}

static void function(int index)
{
    printf("long f%d(long a, long b, struct item *it)\n{\n    long r = b;\n", index);
    switch (index % 5) {
    case 0:
        printf("    for (long i = 0; i < a; i++) {\n        r += ");
        expression(3);
        printf(";\n        if (r & %u) table[i & 63] = r;\n    }\n", 1u << below(8));
        break;
    case 1:
        printf("    switch (a & 15) {\n");
        for (int i = 0; i < 12; i++) {
            printf("    case %d: r = ", i);
            expression(3);
            printf("; %s\n", below(3) ? "break;" : "/* falls through */");
        }
        printf("    default: r--;\n    }\n");
        break;
    case 2:
        printf("    while (it) {\n        it->weight = it->weight * %u.5 + r;\n        if (it->key > a) it = it->left;\n"
               "        else { r += it->key; it = it->right; }\n    }\n",
               1 + below(9));
        break;
    case 3:
        printf("    double x[16], y = a;\n    for (int i = 0; i < 16; i++) x[i] = i * y + b;\n"
               "    for (int i = 1; i < 16; i++) { y += x[i] * x[i - 1]; if (y > %u) y -= x[0]; }\n    r = (long)y + ",
               1000 + below(100000));
        expression(4);
        printf(";\n");
        break;
    default:
        printf("    if (a > b) r = ");
        expression(4);
        printf(";\n    else if (it && it->key == b) r = ");
        expression(4);
        printf(";\n    else return ");
        expression(5);
        printf(";\n");
    }
    if (index > 3) printf("    r += f%u(r & 7, a, it) - f%u(b & 3, r, it);\n", below(index), below(index));
    printf("    return r ^ ");
    expression(2);
    printf(";\n}\n\n");
}

static void source(int count)
{
    printf("struct item { struct item *left, *right; long key; double weight; };\nlong table[64];\n");
    for (int i = 0; i < count; i++) printf("long f%d(long, long, struct item *);\n", i);
    for (int i = 0; i < count; i++) function(i);
}

int main(int argc, char **argv)
{
    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    if (argc == 3 && !strcmp(argv[1], "text")) text(atol(argv[2]));
    else if (argc == 3 && !strcmp(argv[1], "source")) source(atoi(argv[2]));
    else {
        fputs("usage: generate text BYTES | source COUNT\n", stderr);
        return 2;
    }
    return fflush(stdout) != 0;
}
