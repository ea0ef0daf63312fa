/* Input for the compiler: needs no header. */
typedef unsigned long size_type;
struct node { struct node *left, *right; int key; double weight; };

static int compare(const struct node *a, const struct node *b) { return (a->key > b->key) - (a->key < b->key); }

struct node *insert(struct node *root, struct node *new_node)
{
    if (!root) return new_node;
    if (compare(new_node, root) < 0) root->left = insert(root->left, new_node);
    else root->right = insert(root->right, new_node);
    return root;
}

double total(const struct node *root)
{
    return root ? total(root->left) + root->weight + total(root->right) : 0.0;
}

void multiply(double *restrict out, const double *restrict a, const double *restrict b, int n)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int k = 0; k < n; k++) sum += a[i * n + k] * b[k * n + j];
            out[i * n + j] = sum;
        }
}

unsigned checksum(const unsigned char *data, size_type len)
{
    unsigned crc = ~0u;
    while (len--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
    }
    return ~crc;
}

int classify(int c)
{
    switch (c) {
    case 'a': case 'e': case 'i': case 'o': case 'u': return 1;
    case '0': case '1': case '2': case '3': return 2;
    case ' ': case '\t': case '\n': return 3;
    case '+': return 10; case '-': return 11; case '*': return 12; case '/': return 13;
    default: return c < 0 ? -1 : c % 7;
    }
}

static long counter;
__attribute__((noinline)) long bump(long by) { return counter += by * 3 / 7; }
