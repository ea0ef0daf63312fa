/* Compresses a file, and gets it back: `zstd FILE ROUNDS`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "zstd.h"

int main(int argc, char **argv)
{
    FILE *file = argc > 2 ? fopen(argv[1], "rb") : NULL;
    size_t size = 3000000, packed_size = 0;
    unsigned char *text = malloc(size), *again = malloc(size), *packed = malloc(2 * size);
    if (!file) return fputs("usage: zstd FILE ROUNDS\n", stderr), 1;
    size = fread(text, 1, size, file);
    for (int round = atoi(argv[2]); round > 0; round--) {
        packed_size = ZSTD_compress(packed, 2 * size, text, size, 6);
        if (ZSTD_isError(packed_size)) return 2;
        if (ZSTD_decompress(again, size, packed, packed_size) != size || memcmp(again, text, size)) return 3;
    }
    printf("%zu to %zu\n", size, packed_size);
    return 0;
}
