/* What the bench replica and the load client share: clock, growing buffers, HTTP heads, numbers in JSON, options.
 * Linux only (epoll_pwait2 needs 5.11). Each program is one file that includes this one. */
#ifndef SLIPSTREAM_BENCH_WIRE_H
#define SLIPSTREAM_BENCH_WIRE_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_HEAD_BYTES 65536 /* of one HTTP head: the gateway's own limit on headers is below it */
#define NEVER UINT64_MAX

static inline void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

static inline uint64_t clock_us(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static inline uint64_t now_us(void) { return clock_us(CLOCK_MONOTONIC); }

/* Bytes that grow: [off, len) is what is still to be used. */
struct buffer {
    char *bytes;
    size_t off, len, cap;
};

static inline void buffer_room(struct buffer *b, size_t room) {
    if (b->off == b->len) b->off = b->len = 0;
    if (b->len + room <= b->cap) return;
    if (b->off) {
        memmove(b->bytes, b->bytes + b->off, b->len - b->off);
        b->len -= b->off;
        b->off = 0;
    }
    size_t cap = b->cap ? b->cap : 4096;
    while (cap < b->len + room) cap *= 2;
    if (cap == b->cap) return;
    b->bytes = realloc(b->bytes, cap);
    if (!b->bytes) die("out of memory");
    b->cap = cap;
}

static inline void buffer_put(struct buffer *b, const void *bytes, size_t n) {
    buffer_room(b, n);
    memcpy(b->bytes + b->len, bytes, n);
    b->len += n;
}

__attribute__((format(printf, 2, 3))) static inline void buffer_print(struct buffer *b, const char *format, ...) {
    va_list args;
    va_start(args, format);
    buffer_room(b, 1024);
    int n = vsnprintf(b->bytes + b->len, 1024, format, args);
    va_end(args);
    if (n < 0 || n >= 1024) die("a line is longer than its bound of 1024 bytes");
    b->len += (size_t)n;
}

/* Value of a header in a head that ends with an empty line, or NULL. `name` is written with its colon. */
static inline const char *header_value(const char *head, size_t n, const char *name) {
    size_t want = strlen(name);
    const char *line = memchr(head, '\n', n), *end = head + n;
    while (line && line + 1 + want < end) {
        if (!strncasecmp(line + 1, name, want)) {
            const char *value = line + 1 + want;
            while (value < end && *value == ' ') value++;
            return value;
        }
        line = memchr(line + 1, '\n', (size_t)(end - line - 1));
    }
    return NULL;
}

/* Place after `"key":` and white space, or NULL. */
static inline const char *json_field(const char *text, size_t n, const char *quoted_key) {
    size_t want = strlen(quoted_key);
    const char *at = memmem(text, n, quoted_key, want), *end = text + n;
    if (!at) return NULL;
    at += want;
    while (at < end && (*at == ' ' || *at == ':')) at++;
    return at < end ? at : NULL;
}

/* Unsigned number at `at`, which must stop before `end`; 0 when there is none. */
static inline uint64_t number_at(const char *at, const char *end) {
    uint64_t value = 0;
    while (at && at < end && *at >= '0' && *at <= '9' && value < UINT64_MAX / 20) value = value * 10 + (uint64_t)(*at++ - '0');
    return value;
}

/* Wait until an event or until `due_us` (monotonic); NEVER waits for an event alone. */
static inline int wait_until(int epoll, struct epoll_event *events, int max, uint64_t due_us) {
    struct timespec limit = {0, 0}, *timeout = &limit;
    if (due_us == NEVER) {
        timeout = NULL;
    } else {
        uint64_t now = now_us();
        if (due_us > now) {
            limit.tv_sec = (time_t)((due_us - now) / 1000000u);
            limit.tv_nsec = (long)((due_us - now) % 1000000u) * 1000;
        }
    }
    int n = (int)syscall(SYS_epoll_pwait2, epoll, events, max, timeout, NULL, 0);
    if (n < 0 && errno != EINTR) die("epoll_pwait2: %s", strerror(errno));
    return n < 0 ? 0 : n;
}

static inline void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline struct sockaddr_in loopback(uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* Options are `--name value` pairs; unknown names end the program. */
struct option_value {
    const char *name, *value;
};

static inline void read_options(int argc, char **argv, struct option_value *options, size_t count) {
    for (int i = 1; i < argc; i += 2) {
        size_t k = 0;
        while (k < count && strcmp(argv[i], options[k].name)) k++;
        if (k == count) die("unknown option %s", argv[i]);
        if (i + 1 == argc) die("option %s needs a value", argv[i]);
        options[k].value = argv[i + 1];
    }
}

static inline uint64_t option_number(const struct option_value *option, uint64_t low, uint64_t high) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(option->value, &end, 10);
    if (errno || *end || end == option->value || value < low || value > high)
        die("%s must be a whole number from %llu to %llu", option->name, (unsigned long long)low, (unsigned long long)high);
    return value;
}

#endif
