/* The load client's request bodies: made without copying, out of one pool of words.
 *
 * A prompt is [shared prefix][session's own text][tail that no other request has]. With no sessions everything after the shared
 * prefix is unique. With turns > 1 a session's text grows to its full size over its turns, then a new session takes its place. */
#ifndef SLIPSTREAM_BENCH_BODY_H
#define SLIPSTREAM_BENCH_BODY_H

#include "wire.h"
#include <math.h>

#define BODY_POOL_BYTES (8u << 20) /* words; JSON needs no escapes in them */
#define BODY_MARK_BYTES 18         /* one letter, 16 hex digits, a space */
#define BODY_MAX_PARTS 8

struct body_plan {
    const char *path, *model, *file;
    bool model_first, stream, session_header;
    uint64_t max_tokens, body_bytes, sessions, turns, shared_bytes, tail_percent, seed;
};

/* One request's bytes, in order; `scratch` holds the parts that are its own. */
struct request {
    struct iovec parts[BODY_MAX_PARTS];
    int part_count;
    char scratch[1024];
};

struct body_session {
    uint64_t id, turn;
};

static struct {
    struct body_plan plan;
    char *pool, *file, before[256], after[256];
    size_t file_bytes, before_n, after_n;
    struct body_session *sessions;
    uint64_t state, next_id, next_session;
} body;

static inline uint64_t body_random(void) {
    body.state ^= body.state << 13; /* xorshift64, Marsaglia 2003 */
    body.state ^= body.state >> 7;
    body.state ^= body.state << 17;
    return body.state;
}

/* Time to the next Poisson arrival, in microseconds, for `rate` arrivals per second; at least 1. */
static inline uint64_t body_exponential_us(double rate) {
    double uniform = (double)(body_random() >> 11) / 9007199254740992.0;
    double us = -log(1.0 - uniform) * 1e6 / rate;
    return us < 1 ? 1 : (uint64_t)us;
}

static inline uint64_t body_new_id(void) { return (body.plan.seed << 32) + ++body.next_id; }

static inline void body_read_file(const char *name) {
    FILE *f = fopen(name, "rb");
    long n;
    if (!f || fseek(f, 0, SEEK_END) || (n = ftell(f)) < 0 || fseek(f, 0, SEEK_SET)) die("cannot read %s: %s", name, strerror(errno));
    body.file_bytes = (size_t)n;
    body.file = malloc(body.file_bytes + 1);
    if (!body.file || fread(body.file, 1, body.file_bytes, f) != body.file_bytes) die("cannot read %s", name);
    fclose(f);
}

static inline void body_open(const struct body_plan *plan) {
    body.plan = *plan;
    body.state = plan->seed * 2654435761u + 1;
    const char *stream = plan->stream ? "true" : "false";
    if (strlen(plan->model) > 100 || strlen(plan->path) > 200) die("--model or --path is too long");
    /* The order in which the OpenAI client writes a body: messages first. */
    if (plan->model_first) {
        body.before_n = (size_t)sprintf(body.before, "{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"", plan->model);
        body.after_n = (size_t)sprintf(body.after, "\"}],\"max_tokens\":%llu,\"stream\":%s}", (unsigned long long)plan->max_tokens, stream);
    } else {
        body.before_n = (size_t)sprintf(body.before, "{\"messages\":[{\"role\":\"user\",\"content\":\"");
        body.after_n = (size_t)sprintf(body.after, "\"}],\"model\":\"%s\",\"max_tokens\":%llu,\"stream\":%s}", plan->model,
                                       (unsigned long long)plan->max_tokens, stream);
    }
    if (*plan->file) {
        body_read_file(plan->file);
        return;
    }
    if (plan->body_bytes > BODY_POOL_BYTES / 2) die("--body-bytes is more than the pool of words gives");
    if (body.before_n + body.after_n + 3 * BODY_MARK_BYTES > plan->body_bytes) die("--body-bytes leaves no room for a prompt");
    body.pool = malloc(BODY_POOL_BYTES);
    body.sessions = calloc(plan->sessions + 1, sizeof *body.sessions);
    if (!body.pool || !body.sessions) die("out of memory");
    uint64_t seed = body.state;
    body.state = 88172645463325252u; /* the pool is the same for every seed, so that two clients can share prefixes */
    for (size_t i = 0; i < BODY_POOL_BYTES; i++) {
        uint64_t r = body_random() >> 32;
        body.pool[i] = r % 6 == 0 ? ' ' : (char)('a' + (r >> 8) % 26);
    }
    body.state = seed;
    for (uint64_t i = 0; i < plan->sessions; i++) body.sessions[i].id = body_new_id();
}

static inline void body_part(struct request *r, const char *bytes, size_t n) {
    r->parts[r->part_count++] = (struct iovec){.iov_base = (char *)(uintptr_t)bytes, .iov_len = n};
}

/* A mark that names `id`, then words chosen by it: `n` bytes in all. */
static inline void body_marked(struct request *r, char **scratch, char letter, uint64_t id, size_t n) {
    static const char digits[] = "0123456789abcdef";
    char *mark = *scratch;
    if (n < BODY_MARK_BYTES) return;
    *scratch += BODY_MARK_BYTES;
    mark[0] = letter;
    for (int i = 0; i < 16; i++) mark[1 + i] = digits[id >> (60 - 4 * i) & 15];
    mark[17] = ' ';
    body_part(r, mark, BODY_MARK_BYTES);
    if (n > BODY_MARK_BYTES) body_part(r, body.pool + id * 7919 % (BODY_POOL_BYTES / 2), n - BODY_MARK_BYTES);
}

/* Fills `r` with the next request. */
static inline void body_next(struct request *r) {
    const struct body_plan *plan = &body.plan;
    struct body_session *session = NULL;
    char *scratch = r->scratch, *head = scratch;
    size_t shared = 0, own = 0, tail = 0;
    r->part_count = 0;
    if (!body.file) {
        size_t prompt = plan->body_bytes - body.before_n - body.after_n;
        shared = plan->shared_bytes < prompt / 2 ? plan->shared_bytes : prompt / 2;
        tail = prompt - shared;
        if (plan->sessions) {
            session = &body.sessions[body.next_session++ % plan->sessions];
            if (plan->turns > 1 && session->turn == plan->turns) *session = (struct body_session){.id = body_new_id()};
            size_t unique = tail * plan->tail_percent / 100;
            if (plan->tail_percent && unique < BODY_MARK_BYTES) unique = BODY_MARK_BYTES;
            own = tail - unique;
            tail = unique;
            if (plan->turns > 1) own = own * ++session->turn / plan->turns;
            if (own < BODY_MARK_BYTES) own = BODY_MARK_BYTES;
        }
    }
    size_t n = body.file ? body.file_bytes : body.before_n + shared + own + tail + body.after_n;
    scratch += sprintf(scratch, "POST %s HTTP/1.1\r\nhost: bench\r\nuser-agent: slipstream-bench\r\naccept: */*\r\n"
                       "content-type: application/json\r\ncontent-length: %zu\r\n", plan->path, n);
    if (session && plan->session_header) scratch += sprintf(scratch, "x-session-id: s%llu\r\n", (unsigned long long)session->id);
    scratch += sprintf(scratch, "\r\n");
    body_part(r, head, (size_t)(scratch - head));
    if (body.file) {
        body_part(r, body.file, body.file_bytes);
        return;
    }
    body_part(r, body.before, body.before_n);
    if (shared) body_part(r, body.pool, shared);
    if (own) body_marked(r, &scratch, 's', session->id, own);
    if (tail) body_marked(r, &scratch, 'u', body_new_id(), tail);
    body_part(r, body.after, body.after_n);
}

#endif
