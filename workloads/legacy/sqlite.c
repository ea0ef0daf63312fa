/* Runs a file of SQL in memory: `sqlite FILE`. */
#include <stdio.h>
#include <stdlib.h>
#include "sqlite3.h"

static int print(void *unused, int count, char **values, char **names)
{
    (void)unused, (void)names;
    for (int i = 0; i < count; i++) printf("%s%s", values[i] ? values[i] : "", i + 1 < count ? "|" : "\n");
    return 0;
}

int main(int argc, char **argv)
{
    static char text[65536];
    FILE *file = argc > 1 ? fopen(argv[1], "r") : NULL;
    sqlite3 *db;
    char *error = NULL;
    if (!file || !fread(text, 1, sizeof text - 1, file)) return fputs("usage: sqlite FILE\n", stderr), 1;
    if (sqlite3_open(":memory:", &db) || sqlite3_exec(db, text, print, NULL, &error)) {
        fprintf(stderr, "sqlite: %s\n", error ? error : "no database");
        return 1;
    }
    sqlite3_close(db);
    return 0;
}
