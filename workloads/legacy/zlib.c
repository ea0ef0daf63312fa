/* Compresses a file, and gets it back: `zlib FILE ROUNDS`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "zlib.h"

int main(int argc, char **argv)
{
    FILE *file = argc > 2 ? fopen(argv[1], "rb") : NULL;
    unsigned long size = 3000000, packed_size = 0, sum = 0;
    unsigned char *text = malloc(size), *again = malloc(size), *packed = malloc(2 * size);
    if (!file) return fputs("usage: zlib FILE ROUNDS\n", stderr), 1;
    size = fread(text, 1, size, file);
    for (int round = atoi(argv[2]); round > 0; round--) {
        unsigned long again_size = size;
        packed_size = 2 * size;
        if (compress2(packed, &packed_size, text, size, 6) != Z_OK) return 2;
        if (uncompress(again, &again_size, packed, packed_size) != Z_OK) return 3;
        if (again_size != size || memcmp(again, text, size)) return 4;
        sum = sum * 31 + crc32(0, packed, packed_size);
    }
    printf("%lu to %lu %lx\n", size, packed_size, sum);
    return 0;
}
