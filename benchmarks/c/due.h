/* What is due next: a binary heap of times. Owners embed a `struct due` as their first member. */
#ifndef SLIPSTREAM_BENCH_DUE_H
#define SLIPSTREAM_BENCH_DUE_H

#include "wire.h"

#define MAX_FDS 65536 /* connections at once, and so entries of the heap */

struct due {
    uint64_t at_us; /* monotonic */
    int place;      /* in the heap; -1: nothing is due */
};

static struct due *due_heap[MAX_FDS];
static int due_count;

static inline struct due *due_first(void) { return due_heap[0]; }

static inline uint64_t due_next(void) { return due_count ? due_heap[0]->at_us : NEVER; }

static inline void due_put(int place, struct due *d) {
    due_heap[place] = d;
    d->place = place;
}

static inline void due_settle(int place, struct due *d) {
    while (place && due_heap[(place - 1) / 2]->at_us > d->at_us) {
        due_put(place, due_heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (int child; (child = 2 * place + 1) < due_count; place = child) {
        if (child + 1 < due_count && due_heap[child + 1]->at_us < due_heap[child]->at_us) child++;
        if (due_heap[child]->at_us >= d->at_us) break;
        due_put(place, due_heap[child]);
    }
    due_put(place, d);
}

static inline void due_set(struct due *d, uint64_t at_us) {
    d->at_us = at_us;
    if (d->place < 0) d->place = due_count++;
    due_settle(d->place, d);
}

static inline void due_cancel(struct due *d) {
    if (d->place < 0) return;
    int place = d->place;
    struct due *last = due_heap[--due_count];
    d->place = -1;
    if (last != d) due_settle(place, last);
}

#endif
