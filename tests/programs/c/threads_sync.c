// flags: -O1 -pthread
// Condition variables, barriers, read-write locks, once, semaphores and timed waits.
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <time.h>

enum { THREADS = 4, ROUNDS = 2000, SLOTS = 8 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t not_full = PTHREAD_COND_INITIALIZER, not_empty = PTHREAD_COND_INITIALIZER;
static int ring[SLOTS], used, head, tail;
static long consumed;

static void *producer(void *argument) {
    for (int i = 1; i <= ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        while (used == SLOTS)
            pthread_cond_wait(&not_full, &lock);
        ring[head++ % SLOTS] = i + (int)(long)argument;
        used++;
        pthread_cond_signal(&not_empty);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void *consumer(void *argument) {
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        while (used == 0)
            pthread_cond_wait(&not_empty, &lock);
        consumed += ring[tail++ % SLOTS];
        used--;
        pthread_cond_signal(&not_full);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static pthread_barrier_t barrier;
static long steps[THREADS], skew;

static void *in_step(void *argument) {
    long id = (long)argument;
    for (int round = 0; round < 500; round++) {
        steps[id]++;
        pthread_barrier_wait(&barrier);
        for (int i = 0; i < THREADS; i++)
            if (steps[i] != round + 1)
                __atomic_fetch_add(&skew, 1, __ATOMIC_RELAXED);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static long left, right, torn;

static void *reader_writer(void *argument) {
    for (int i = 0; i < 2000; i++) {
        if ((i + (long)argument) % 8 == 0) {
            pthread_rwlock_wrlock(&rwlock);
            left++;
            right++;
            pthread_rwlock_unlock(&rwlock);
        } else {
            pthread_rwlock_rdlock(&rwlock);
            if (left != right)
                __atomic_fetch_add(&torn, 1, __ATOMIC_RELAXED);
            pthread_rwlock_unlock(&rwlock);
        }
    }
    return NULL;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int initialized;
static void initialize(void) { initialized++; }
static sem_t semaphore;

static void *once_and_semaphore(void *argument) {
    (void)argument;
    pthread_once(&once, initialize);
    for (int i = 0; i < 500; i++)
        sem_post(&semaphore);
    return NULL;
}

static void run(void *(*even)(void *), void *(*odd)(void *)) {
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, i % 2 ? odd : even, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

int main(void) {
    run(producer, consumer);
    printf("consumed %ld, %d left\n", consumed, used);
    pthread_barrier_init(&barrier, NULL, THREADS);
    run(in_step, in_step);
    printf("out of step %ld\n", skew);
    run(reader_writer, reader_writer);
    printf("written %ld, torn %ld\n", left, torn);
    sem_init(&semaphore, 0, 0);
    run(once_and_semaphore, once_and_semaphore);
    int posted = 0;
    while (sem_trywait(&semaphore) == 0)
        posted++;
    printf("once %d, posted %d\n", initialized, posted);
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_nsec += 20000000;
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_sec++;
        deadline.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&lock);
    int result = pthread_cond_timedwait(&not_empty, &lock, &deadline);
    pthread_mutex_unlock(&lock);
    printf("timed out %d\n", result == ETIMEDOUT);
    return 0;
}
