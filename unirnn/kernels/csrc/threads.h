/* Threads for the time of one call: they are made when it begins and joined when it ends. So nothing spins between
   calls, a fork loses nothing, and a framework's own threads are not in the way. */

#ifndef UNIRNN_THREADS_H
#define UNIRNN_THREADS_H

#define MOST_THREADS 64

#if defined(_WIN32)

typedef struct {
    int size;
} thread_team;

static inline void wait_for_all(thread_team *t) { (void)t; }

static inline void run_team(int size, void (*run)(void *, int, thread_team *), void *argument) {
    thread_team t = {1};
    (void)size;
    run(argument, 0, &t);
}

#else

#include <pthread.h>
#include <sched.h>

/* Let a new thread begin on another processor than this one, where some Linux systems would let it wait for us. */
static void move_away(pthread_t thread) {
#if defined(__linux__)
    cpu_set_t all, others;
    int here = sched_getcpu();
    if (here < 0 || pthread_getaffinity_np(thread, sizeof(all), &all)) return;
    others = all;
    CPU_CLR(here, &others);
    if (!CPU_COUNT(&others)) return;
    pthread_setaffinity_np(thread, sizeof(others), &others);
    pthread_setaffinity_np(thread, sizeof(all), &all);
#else
    (void)thread;
#endif
}

typedef struct thread_team {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int size, next, waiting;
    unsigned rounds; /* how often all threads have waited for each other */
    void (*run)(void *, int, struct thread_team *);
    void *argument;
} thread_team;

/* Wait until all threads of the team have come here. */
static void wait_for_all(thread_team *t) {
    if (t->size == 1) return;
    pthread_mutex_lock(&t->lock);
    unsigned now = t->rounds;
    if (++t->waiting == t->size) {
        t->waiting = 0;
        t->rounds++;
        pthread_cond_broadcast(&t->changed);
    }
    while (t->rounds == now) pthread_cond_wait(&t->changed, &t->lock);
    pthread_mutex_unlock(&t->lock);
}

static void *member(void *argument) {
    thread_team *t = argument;
    pthread_mutex_lock(&t->lock);
    int number = t->next++;
    while (!t->size) pthread_cond_wait(&t->changed, &t->lock);
    pthread_mutex_unlock(&t->lock);
    t->run(t->argument, number, t);
    return NULL;
}

/* Call run(argument, number, team) in `size` threads, or in as many as can be made; the caller's is one of them. */
static void run_team(int size, void (*run)(void *, int, thread_team *), void *argument) {
    thread_team t = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 1, 0, 0, run, argument};
    pthread_t threads[MOST_THREADS];
    int made = 1;
    while (made < size && pthread_create(&threads[made], NULL, member, &t) == 0) move_away(threads[made++]);
    pthread_mutex_lock(&t.lock);
    t.size = made;
    pthread_cond_broadcast(&t.changed);
    pthread_mutex_unlock(&t.lock);
    run(argument, 0, &t);
    for (int i = 1; i < made; i++) pthread_join(threads[i], NULL);
}

#endif
#endif
