/* Kernels as old programs have them. `kernels NAME ROUNDS` prints a checksum. */
#include <math.h>
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

static uint64_t matmul(void)
{
    enum { N = 120 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (i * 7 + j) % 13;
            b[i][j] = (i + j * 5) % 11;
        }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < N; k++) sum += a[i][k] * b[k][j];
            c[i][j] = sum;
        }
    double sum = 0;
    for (int i = 0; i < N; i++) sum += c[i][(i * 31) % N];
    return (uint64_t)sum;
}

/* Rows of a sparse matrix, compressed. */
static uint64_t spmv(void)
{
    enum { ROWS = 4000, EACH = 24 };
    static int column[ROWS * EACH], start[ROWS + 1];
    static double value[ROWS * EACH], x[ROWS], y[ROWS];
    for (int i = 0; i < ROWS; i++) {
        start[i + 1] = start[i] + EACH;
        x[i] = i % 17;
        for (int k = start[i]; k < start[i + 1]; k++) {
            column[k] = (i * 31 + k * 7) % ROWS;
            value[k] = k % 9;
        }
    }
    for (int pass = 0; pass < 10; pass++) {
        for (int i = 0; i < ROWS; i++) {
            double sum = 0;
            for (int k = start[i]; k < start[i + 1]; k++) sum += value[k] * x[column[k]];
            y[i] = sum;
        }
        x[pass] = y[pass] / 1000;
    }
    return (uint64_t)y[ROWS / 2];
}

struct complex {
    double re, im;
};

static void transform(struct complex *data, int count)
{
    for (int i = 1, j = 0; i < count; i++) {
        int bit = count >> 1;
        for (; j & bit; bit >>= 1) j ^= bit;
        j ^= bit;
        if (i < j) {
            struct complex swap = data[i];
            data[i] = data[j];
            data[j] = swap;
        }
    }
    for (int len = 2; len <= count; len <<= 1) {
        double angle = 6.283185307179586 / len;
        struct complex root = {cos(angle), sin(angle)};
        for (int i = 0; i < count; i += len) {
            struct complex w = {1, 0};
            for (int k = 0; k < len / 2; k++) {
                struct complex even = data[i + k], odd = data[i + k + len / 2], turned;
                turned.re = odd.re * w.re - odd.im * w.im;
                turned.im = odd.re * w.im + odd.im * w.re;
                data[i + k].re = even.re + turned.re;
                data[i + k].im = even.im + turned.im;
                data[i + k + len / 2].re = even.re - turned.re;
                data[i + k + len / 2].im = even.im - turned.im;
                double re = w.re * root.re - w.im * root.im;
                w.im = w.re * root.im + w.im * root.re;
                w.re = re;
            }
        }
    }
}

static uint64_t fft(void)
{
    enum { N = 8192 };
    static struct complex data[N];
    for (int i = 0; i < N; i++) data[i] = (struct complex){i % 19, i % 7};
    transform(data, N);
    return (uint64_t)fabs(data[N / 3].re * 1000);
}

static uint64_t mandelbrot(void)
{
    uint64_t inside = 0;
    for (int row = 0; row < 100; row++)
        for (int at = 0; at < 100; at++) {
            double cr = at / 40.0 - 1.9, ci = row / 50.0 - 1.0, zr = 0, zi = 0;
            int n = 0;
            while (n < 200 && zr * zr + zi * zi < 4) {
                double next = zr * zr - zi * zi + cr;
                zi = 2 * zr * zi + ci;
                zr = next;
                n++;
            }
            inside += n;
        }
    return inside;
}

struct body {
    double at[3], speed[3], mass;
};

static void advance(struct body *bodies, int count, double dt)
{
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++) {
            double dx = bodies[i].at[0] - bodies[j].at[0];
            double dy = bodies[i].at[1] - bodies[j].at[1];
            double dz = bodies[i].at[2] - bodies[j].at[2];
            double distance = dx * dx + dy * dy + dz * dz + 0.01;
            double force = dt / (distance * sqrt(distance));
            bodies[i].speed[0] -= dx * bodies[j].mass * force;
            bodies[i].speed[1] -= dy * bodies[j].mass * force;
            bodies[i].speed[2] -= dz * bodies[j].mass * force;
            bodies[j].speed[0] += dx * bodies[i].mass * force;
            bodies[j].speed[1] += dy * bodies[i].mass * force;
            bodies[j].speed[2] += dz * bodies[i].mass * force;
        }
    for (int i = 0; i < count; i++)
        for (int axis = 0; axis < 3; axis++) bodies[i].at[axis] += dt * bodies[i].speed[axis];
}

static uint64_t nbody(void)
{
    struct body bodies[5];
    for (int i = 0; i < 5; i++)
        for (int axis = 0; axis < 3; axis++) {
            bodies[i].at[axis] = i * 3 - axis * 2;
            bodies[i].speed[axis] = (i - axis) * 0.1;
            bodies[i].mass = 1 + i;
        }
    for (int step = 0; step < 10000; step++) advance(bodies, 5, 0.001);
    return (uint64_t)fabs(bodies[2].at[1] * 1e6);
}

static void quick(uint32_t *values, int low, int high)
{
    if (low >= high) return;
    uint32_t pivot = values[(low + high) / 2];
    int i = low, j = high;
    while (i <= j) {
        while (values[i] < pivot) i++;
        while (values[j] > pivot) j--;
        if (i <= j) {
            uint32_t swap = values[i];
            values[i] = values[j];
            values[j] = swap;
            i++;
            j--;
        }
    }
    quick(values, low, j);
    quick(values, i, high);
}

static uint64_t quicksort(void)
{
    enum { N = 40000 };
    static uint32_t values[N];
    for (int i = 0; i < N; i++) values[i] = number();
    quick(values, 0, N - 1);
    return values[N / 2];
}

/* Codes of symbols from their frequencies, then a text by them, then back. */
static uint64_t huffman(void)
{
    enum { TEXT = 60000, SYMBOLS = 64 };
    static unsigned char text[TEXT], bits[TEXT * 4];
    static int left[2 * SYMBOLS], right[2 * SYMBOLS], parent[2 * SYMBOLS];
    static uint32_t weight[2 * SYMBOLS], code[SYMBOLS];
    static int length[SYMBOLS];
    memset(weight, 0, sizeof weight);
    memset(bits, 0, sizeof bits);
    for (int i = 0; i < TEXT; i++) {
        text[i] = (number() & number()) % SYMBOLS;
        weight[text[i]]++;
    }
    for (int i = 0; i < SYMBOLS; i++) weight[i]++;
    memset(parent, 0, sizeof parent);
    int nodes = SYMBOLS;
    for (; nodes < 2 * SYMBOLS - 1; nodes++) {
        int least[2] = {-1, -1};
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < nodes; i++)
                if (!parent[i] && i != least[0] && (least[k] < 0 || weight[i] < weight[least[k]])) least[k] = i;
        left[nodes] = least[0];
        right[nodes] = least[1];
        parent[least[0]] = parent[least[1]] = nodes;
        weight[nodes] = weight[least[0]] + weight[least[1]];
    }
    for (int i = 0; i < SYMBOLS; i++) {
        code[i] = 0;
        length[i] = 0;
        for (int at = i; parent[at]; at = parent[at]) {
            if (right[parent[at]] == at) code[i] |= 1u << length[i];
            length[i]++;
        }
    }
    size_t at = 0;
    for (int i = 0; i < TEXT; i++)
        for (int k = length[text[i]] - 1; k >= 0; k--, at++) bits[at >> 3] |= (code[text[i]] >> k & 1) << (at & 7);
    uint64_t sum = 0;
    size_t end = at;
    for (at = 0; at < end;) {
        int node = nodes - 1;
        while (node >= SYMBOLS) {
            node = bits[at >> 3] >> (at & 7) & 1 ? right[node] : left[node];
            at++;
        }
        sum = sum * 31 + node;
    }
    return sum;
}

static uint32_t rotate(uint32_t value, int by)
{
    return value >> by | value << (32 - by);
}

static uint64_t sha256(void)
{
    static uint32_t k[64];
    uint32_t h[8] = {1779033703u, 3144134277u, 1013904242u, 2773480762u, 1359893119u, 2600822924u, 528734635u, 1541459225u};
    for (int i = 0; i < 64; i++) k[i] = 2654435761u * (i + 1);
    for (int block = 0; block < 1200; block++) {
        uint32_t w[64], s[8];
        for (int i = 0; i < 16; i++) w[i] = block * 16 + i;
        for (int i = 16; i < 64; i++) {
            uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
            uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        for (int i = 0; i < 8; i++) s[i] = h[i];
        for (int i = 0; i < 64; i++) {
            uint32_t s1 = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
            uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
            uint32_t first = s[7] + s1 + choice + k[i] + w[i];
            uint32_t s0 = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
            uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
            s[7] = s[6];
            s[6] = s[5];
            s[5] = s[4];
            s[4] = s[3] + first;
            s[3] = s[2];
            s[2] = s[1];
            s[1] = s[0];
            s[0] = first + s0 + majority;
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
    return (uint64_t)h[0] << 32 | h[7];
}

/* Small functions that call each other. */
static int clamp(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

static int get(const unsigned char *image, int width, int height, int x, int y)
{
    return image[clamp(y, 0, height - 1) * width + clamp(x, 0, width - 1)];
}

static int blurred(const unsigned char *image, int width, int height, int x, int y)
{
    int sum = 0;
    for (int dy = -1; dy <= 1; dy++)
        for (int dx = -1; dx <= 1; dx++) sum += get(image, width, height, x + dx, y + dy);
    return sum / 9;
}

static uint64_t calls(void)
{
    enum { W = 160, H = 120 };
    static unsigned char image[W * H];
    for (int i = 0; i < W * H; i++) image[i] = i * 7;
    uint64_t sum = 0;
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++) sum += blurred(image, W, H, x, y) * (x + y);
    return sum;
}

static int fibonacci(int n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static uint64_t recursion(void)
{
    return fibonacci(25);
}

static uint64_t sieve(void)
{
    enum { N = 200000 };
    static char composite[N];
    memset(composite, 0, sizeof composite);
    int count = 0;
    for (int i = 2; i < N; i++) {
        if (composite[i]) continue;
        count++;
        for (int j = i + i; j < N; j += i) composite[j] = 1;
    }
    return count;
}

/* The longest common subsequence: a table filled row by row. */
static uint64_t table(void)
{
    enum { N = 700 };
    static char a[N], b[N];
    static int best[N + 1][N + 1];
    for (int i = 0; i < N; i++) {
        a[i] = number() & 3;
        b[i] = number() & 3;
    }
    for (int i = 1; i <= N; i++)
        for (int j = 1; j <= N; j++) {
            if (a[i - 1] == b[j - 1]) best[i][j] = best[i - 1][j - 1] + 1;
            else if (best[i - 1][j] > best[i][j - 1]) best[i][j] = best[i - 1][j];
            else best[i][j] = best[i][j - 1];
        }
    return best[N][N];
}

static const struct {
    const char *name;
    uint64_t (*run)(void);
} kernels[] = {
    {"matmul", matmul},       {"spmv", spmv},           {"fft", fft},         {"mandelbrot", mandelbrot}, {"nbody", nbody},
    {"quicksort", quicksort}, {"huffman", huffman},     {"sha256", sha256},   {"calls", calls},           {"recursion", recursion},
    {"sieve", sieve},         {"table", table},
};

int main(int argc, char **argv)
{
    int rounds = argc > 2 ? atoi(argv[2]) : 1;
    for (size_t i = 0; argc > 1 && i < sizeof kernels / sizeof *kernels; i++) {
        if (strcmp(argv[1], kernels[i].name)) continue;
        uint64_t sum = 0;
        for (int round = 0; round < rounds; round++) sum = sum * 31 + kernels[i].run();
        printf("%s %016llx\n", kernels[i].name, (unsigned long long)sum);
        return 0;
    }
    fputs("usage: kernels NAME ROUNDS\n", stderr);
    return 1;
}
