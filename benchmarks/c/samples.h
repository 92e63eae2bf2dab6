/* Durations in microseconds, kept whole until the end, and their percentiles as JSON. */
#ifndef SLIPSTREAM_BENCH_SAMPLES_H
#define SLIPSTREAM_BENCH_SAMPLES_H

#include "wire.h"

#define MAX_SAMPLES (4u << 20) /* of one kind: 16 MiB; later ones are not kept */

struct samples {
    uint32_t *us;
    size_t count, cap;
};

static inline void sample(struct samples *s, uint64_t us) {
    if (s->count == s->cap) {
        if (s->cap == MAX_SAMPLES) return;
        s->cap = s->cap ? s->cap * 2 : 65536;
        s->us = realloc(s->us, s->cap * sizeof *s->us);
        if (!s->us) die("out of memory");
    }
    s->us[s->count++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

static inline int samples_by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static inline void print_samples(const char *name, struct samples *s) {
    printf(",\"%s_us\":{\"count\":%zu", name, s->count);
    if (s->count) {
        qsort(s->us, s->count, sizeof *s->us, samples_by_value);
        printf(",\"p50\":%u,\"p90\":%u,\"p99\":%u,\"max\":%u", s->us[s->count / 2], s->us[s->count * 9 / 10],
               s->us[s->count * 99 / 100], s->us[s->count - 1]);
    }
    putchar('}');
}

#endif
