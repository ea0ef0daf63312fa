/* Parses a JSON text that it made, and writes it again: `json ROUNDS`. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { NOTHING, TRUTH, NUMBER, STRING, LIST, OBJECT };

struct value {
    enum kind kind;
    double number;
    char *text, *key;
    struct value *first, *next;
};

static const char *cursor;

static void fail(const char *what)
{
    fprintf(stderr, "json: %s\n", what);
    exit(1);
}

static void skip_space(void)
{
    while (*cursor == ' ' || *cursor == '\n' || *cursor == '\t' || *cursor == '\r') cursor++;
}

static char *parse_string(void)
{
    const char *start = ++cursor;
    size_t length = 0;
    for (; *cursor != '"'; cursor++) {
        if (*cursor == '\\') cursor++;
        if (!*cursor) fail("a string without an end");
        length++;
    }
    char *text = malloc(length + 1), *to = text;
    for (const char *at = start; at < cursor; at++) {
        if (*at == '\\') {
            at++;
            *to++ = *at == 'n' ? '\n' : *at == 't' ? '\t' : *at;
        } else *to++ = *at;
    }
    *to = 0;
    cursor++;
    return text;
}

static double parse_number(void)
{
    double sign = 1, value = 0, scale = 1;
    if (*cursor == '-') {
        sign = -1;
        cursor++;
    }
    for (; *cursor >= '0' && *cursor <= '9'; cursor++) value = value * 10 + (*cursor - '0');
    if (*cursor == '.')
        for (cursor++; *cursor >= '0' && *cursor <= '9'; cursor++) {
            value = value * 10 + (*cursor - '0');
            scale *= 10;
        }
    return sign * value / scale;
}

static struct value *parse(void)
{
    struct value *value = calloc(1, sizeof *value);
    skip_space();
    if (*cursor == '{' || *cursor == '[') {
        char end = *cursor == '{' ? '}' : ']';
        struct value **last = &value->first;
        value->kind = *cursor == '{' ? OBJECT : LIST;
        cursor++;
        for (skip_space(); *cursor != end; skip_space()) {
            char *key = NULL;
            if (value->kind == OBJECT) {
                key = parse_string();
                skip_space();
                if (*cursor++ != ':') fail("no colon");
            }
            *last = parse();
            (*last)->key = key;
            last = &(*last)->next;
            skip_space();
            if (*cursor == ',') cursor++;
        }
        cursor++;
    } else if (*cursor == '"') {
        value->kind = STRING;
        value->text = parse_string();
    } else if (!strncmp(cursor, "true", 4) || !strncmp(cursor, "null", 4)) {
        value->kind = *cursor == 't' ? TRUTH : NOTHING;
        cursor += 4;
    } else {
        value->kind = NUMBER;
        value->number = parse_number();
    }
    return value;
}

static char *out;

static void put(const char *text)
{
    while (*text) *out++ = *text++;
}

static void write_string(const char *text)
{
    *out++ = '"';
    for (; *text; text++) {
        if (*text == '"' || *text == '\\' || *text == '\n') *out++ = '\\';
        *out++ = *text == '\n' ? 'n' : *text;
    }
    *out++ = '"';
}

static void write_number(double number)
{
    char digits[32];
    int count = 0;
    long cents = (long)(number * 100 + (number < 0 ? -0.5 : 0.5));
    if (cents < 0) {
        *out++ = '-';
        cents = -cents;
    }
    for (; cents || count < 3; cents /= 10) digits[count++] = '0' + cents % 10;
    while (count > 2) *out++ = digits[--count];
    *out++ = '.';
    while (count > 0) *out++ = digits[--count];
}

static void write_value(const struct value *value)
{
    switch (value->kind) {
    case NOTHING: put("null"); break;
    case TRUTH: put("true"); break;
    case NUMBER: write_number(value->number); break;
    case STRING: write_string(value->text); break;
    default:
        *out++ = value->kind == OBJECT ? '{' : '[';
        for (const struct value *at = value->first; at; at = at->next) {
            if (at->key) {
                write_string(at->key);
                *out++ = ':';
            }
            write_value(at);
            if (at->next) *out++ = ',';
        }
        *out++ = value->kind == OBJECT ? '}' : ']';
    }
}

static void drop(struct value *value)
{
    while (value) {
        struct value *next = value->next;
        drop(value->first);
        free(value->text);
        free(value->key);
        free(value);
        value = next;
    }
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    enum { RECORDS = 2000 };
    char *text = malloc(RECORDS * 200 + 3), *again = malloc(RECORDS * 400 + 3), *at = text;
    *at++ = '[';
    for (int i = 0; i < RECORDS; i++)
        at += sprintf(at, "%s\n  {\"id\": %d, \"name\": \"record \\\"%d\\\"\", \"price\": %d.%02d, \"tags\": [\"a%d\", \"bb\", null, true], \"at\": {\"x\": -%d, \"y\": %d}}",
                      i ? "," : "", i, i * 7, i * 3, i % 100, i % 10, i, i * 2);
    strcpy(at, "\n]");
    uint64_t sum = 0;
    for (int round = 0; round < rounds; round++) {
        cursor = text;
        struct value *value = parse();
        out = again;
        write_value(value);
        *out = 0;
        for (const char *c = again; *c; c++) sum = sum * 31 + (unsigned char)*c;
        drop(value);
    }
    printf("%016llx\n", (unsigned long long)sum);
    return 0;
}
