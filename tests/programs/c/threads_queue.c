// flags: -O2 -pthread -mcx16
// A lock-free stack with a tagged 16-byte head, a bounded queue with sequence numbers, and
// a ticket lock: nothing is lost, nothing comes twice.
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>

enum { THREADS = 4, EACH = 20000, SLOTS = 64 };

struct node { struct node *next; long value; };
struct head { struct node *top; uint64_t tag; } __attribute__((aligned(16)));
static struct head stack;
static struct node nodes[THREADS][64];

static int swap_head(struct head *expected, struct head new) {
    unsigned char done;
    __asm__ volatile("lock cmpxchg16b %1\n\tsete %0"
                     : "=q"(done), "+m"(stack), "+a"(expected->top), "+d"(expected->tag)
                     : "b"(new.top), "c"(new.tag)
                     : "memory");
    return done;
}
static struct head read_head(void) {
    struct head now = {__atomic_load_n(&stack.top, __ATOMIC_ACQUIRE), 0};
    now.tag = __atomic_load_n(&stack.tag, __ATOMIC_ACQUIRE);
    return now;
}
static void push(struct node *node) {
    struct head old = read_head();
    do
        node->next = old.top;
    while (!swap_head(&old, (struct head){node, old.tag + 1}));
}
static struct node *pop(void) {
    struct head old = read_head();
    while (old.top)
        if (swap_head(&old, (struct head){__atomic_load_n(&old.top->next, __ATOMIC_RELAXED), old.tag + 1}))
            return old.top;
    return NULL;
}

struct slot { uint64_t sequence; long value; };
static struct slot slots[SLOTS];
static uint64_t enqueue_at, dequeue_at;

static int enqueue(long value) {
    uint64_t at = __atomic_load_n(&enqueue_at, __ATOMIC_RELAXED);
    for (;;) {
        struct slot *slot = &slots[at % SLOTS];
        int64_t ahead = (int64_t)(__atomic_load_n(&slot->sequence, __ATOMIC_ACQUIRE) - at);
        if (ahead < 0)
            return 0;
        if (ahead > 0)
            at = __atomic_load_n(&enqueue_at, __ATOMIC_RELAXED);
        else if (__atomic_compare_exchange_n(&enqueue_at, &at, at + 1, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            slot->value = value;
            __atomic_store_n(&slot->sequence, at + 1, __ATOMIC_RELEASE);
            return 1;
        }
    }
}
static int dequeue(long *value) {
    uint64_t at = __atomic_load_n(&dequeue_at, __ATOMIC_RELAXED);
    for (;;) {
        struct slot *slot = &slots[at % SLOTS];
        int64_t ahead = (int64_t)(__atomic_load_n(&slot->sequence, __ATOMIC_ACQUIRE) - (at + 1));
        if (ahead < 0)
            return 0;
        if (ahead > 0)
            at = __atomic_load_n(&dequeue_at, __ATOMIC_RELAXED);
        else if (__atomic_compare_exchange_n(&dequeue_at, &at, at + 1, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            *value = slot->value;
            __atomic_store_n(&slot->sequence, at + SLOTS, __ATOMIC_RELEASE);
            return 1;
        }
    }
}

static unsigned next_ticket, now_serving;
static long guarded, received, received_count;

static void *work(void *argument) {
    long id = (long)argument, sum = 0, count = 0, got;
    for (int i = 0; i < 64; i++) {
        nodes[id][i].value = 1;
        push(&nodes[id][i]);
    }
    for (int i = 0; i < EACH; i++) {
        struct node *node = pop();
        if (node) {
            node->value++;
            push(node);
        }
        if (i % 16 == 0) {
            unsigned ticket = __atomic_fetch_add(&next_ticket, 1, __ATOMIC_RELAXED);
            while (__atomic_load_n(&now_serving, __ATOMIC_ACQUIRE) != ticket)
                sched_yield();
            guarded++;
            __atomic_store_n(&now_serving, ticket + 1, __ATOMIC_RELEASE);
        }
        while (!enqueue(id * EACH + i))
            if (dequeue(&got))
                sum += got, count++;
        if (dequeue(&got))
            sum += got, count++;
    }
    __atomic_fetch_add(&received, sum, __ATOMIC_RELAXED);
    __atomic_fetch_add(&received_count, count, __ATOMIC_RELAXED);
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < SLOTS; i++)
        slots[i].sequence = i;
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    long got, visits = 0, count = 0;
    while (dequeue(&got))
        received += got, received_count++;
    for (struct node *node; (node = pop()); count++)
        visits += node->value > 0;
    printf("queue %ld of %ld, stack %ld %ld, guarded %ld\n", received_count, received, count, visits, guarded);
    return 0;
}
