/* The load client: requests to one or more addresses over kept-alive connections, in one epoll thread.
 *
 * Closed loop: --connections requests are always in flight. Open loop (--rate > 0): Poisson arrivals, each on an idle connection
 * or a new one up to --connections; latencies count from the arrival, so waiting for a connection is part of them.
 * --ramp-ms spreads the first requests of a closed loop, so that streams of one length do not all tick at the same moment.
 * Samples are taken after --warmup-ms and until --duration-ms after that; then requests in flight get --grace-ms to end.
 * One JSON object on standard output tells everything. */
#define _GNU_SOURCE
#include "body.h"
#include "samples.h"
#include "wire.h"

#define MAX_CONNECTIONS 8192
#define MAX_TARGETS 64
#define MAX_LINE 8192          /* bytes of one SSE line, and of a whole JSON answer */
#define REQUEST_TIMEOUT_US 60000000u
#define RETRY_US 10000 /* after a refused connection, so that a dead target does not spin the client */
#define MAX_WAITING 1048576

enum failure { FAIL_CONNECT, FAIL_CLOSED, FAIL_STATUS, FAIL_TRUNCATED, FAIL_TIMEOUT, FAIL_PROTOCOL, FAILURES };
static const char *failure_names[] = {"connect", "closed", "status", "truncated", "timeout", "protocol"};
enum phase { HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct connection {
    int fd, target; /* fd -1: not open */
    bool busy, chunked, stream_done, answered, close_after, writing, fresh;
    enum phase phase;
    uint64_t left, started_us, first_us, last_us, retry_us /* idle until then */;
    uint32_t tokens;
    int status;
    struct buffer in, line;
    struct request request;
    int sent_parts;
};

static struct connection *connections;
static struct sockaddr_in targets[MAX_TARGETS];
static int target_count, connection_count, epoll, busy_count;
static struct samples ttft, tpot, e2e;
static uint64_t failures[FAILURES], statuses[6], requests_sent, requests_done, tokens_all, window_done, window_tokens;
static uint64_t sample_from, sample_until;
static bool streaming, in_window;
static uint32_t tokens_wanted;
static uint64_t *waiting, waiting_head, waiting_tail, arrivals_lost; /* arrivals that found no connection, a ring */

static bool sampled(uint64_t at) { return at >= sample_from && at < sample_until; }

static void hang_up(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->in.off = c->in.len = 0;
}

static void end_request(struct connection *c) {
    c->busy = false;
    busy_count--;
}

static void fail(struct connection *c, enum failure kind) {
    failures[kind]++;
    end_request(c);
    hang_up(c);
    if (kind == FAIL_CONNECT) c->retry_us = now_us() + RETRY_US;
}

static void watch(struct connection *c, bool writable, int how) {
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0u), .data.ptr = c};
    epoll_ctl(epoll, how, c->fd, &event);
    c->writing = writable;
}

static bool open_connection(struct connection *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) return false;
    no_delay(c->fd);
    if (connect(c->fd, (struct sockaddr *)&targets[c->target], sizeof targets[0]) && errno != EINPROGRESS) {
        hang_up(c);
        return false;
    }
    c->fresh = true;
    watch(c, true, EPOLL_CTL_ADD);
    return true;
}

static void push(struct connection *c) {
    struct request *r = &c->request;
    while (c->sent_parts < r->part_count) {
        struct msghdr message = {.msg_iov = r->parts + c->sent_parts, .msg_iovlen = (size_t)(r->part_count - c->sent_parts)};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN || errno == ENOTCONN) {
                if (!c->writing) watch(c, true, EPOLL_CTL_MOD);
                return;
            }
            fail(c, c->fresh ? FAIL_CONNECT : FAIL_CLOSED);
            return;
        }
        while (n > 0 && (size_t)n >= r->parts[c->sent_parts].iov_len) n -= (ssize_t)r->parts[c->sent_parts++].iov_len;
        if (n > 0) {
            r->parts[c->sent_parts].iov_base = (char *)r->parts[c->sent_parts].iov_base + n;
            r->parts[c->sent_parts].iov_len -= (size_t)n;
        }
        while (c->sent_parts < r->part_count && !r->parts[c->sent_parts].iov_len) c->sent_parts++;
    }
    if (c->writing) watch(c, false, EPOLL_CTL_MOD);
}

static void start_request(struct connection *c, uint64_t arrived_us) {
    c->busy = true;
    busy_count++;
    requests_sent++;
    c->phase = HEAD;
    c->tokens = 0;
    c->stream_done = c->answered = c->close_after = false;
    c->first_us = c->last_us = 0;
    c->started_us = arrived_us;
    c->line.off = c->line.len = 0;
    c->sent_parts = 0;
    body_next(&c->request);
    if (c->fd < 0 && !open_connection(c)) {
        fail(c, FAIL_CONNECT);
        return;
    }
    if (!c->fresh) push(c); /* else when the connection is there */
}

static void count_token(struct connection *c, uint64_t now) {
    if (!c->tokens++) {
        c->first_us = now;
        if (sampled(now)) sample(&ttft, now - c->started_us);
    }
    c->last_us = now;
    tokens_all++;
    if (sampled(now)) window_tokens++;
}

/* One line of an SSE stream, without its newline. */
static void take_line(struct connection *c, const char *line, size_t n, uint64_t now) {
    if (n < 6 || memcmp(line, "data: ", 6)) return;
    if (n >= 12 && !memcmp(line + 6, "[DONE]", 6)) {
        c->stream_done = true;
        return;
    }
    const char *text = memmem(line, n, "\"content\":\"", 11);
    if (!text && (text = memmem(line, n, "\"text\":\"", 8))) text -= 3; /* as long as the other */
    if (text && text + 11 < line + n && text[11] != '"') count_token(c, now);
}

static bool take_body(struct connection *c, const char *bytes, size_t n, uint64_t now) {
    if (!streaming || c->status != 200) {
        if (c->line.len + n > MAX_LINE) return false;
        buffer_put(&c->line, bytes, n);
        return true;
    }
    while (n) {
        const char *end = memchr(bytes, '\n', n);
        size_t part = end ? (size_t)(end - bytes) : n;
        if (end && !c->line.len) {
            take_line(c, bytes, part, now);
        } else {
            if (c->line.len + part > MAX_LINE) return false;
            buffer_put(&c->line, bytes, part);
            if (end) {
                take_line(c, c->line.bytes, c->line.len, now);
                c->line.len = 0;
            }
        }
        if (end) part++;
        bytes += part;
        n -= part;
    }
    return true;
}

/* The answer is complete as HTTP; is it complete as an answer? */
static void end_answer(struct connection *c, uint64_t now) {
    if (c->status != 200) {
        statuses[c->status / 100 < 6 ? c->status / 100 : 0]++;
        failures[FAIL_STATUS]++;
        end_request(c);
        hang_up(c);
        return;
    }
    if (!streaming) {
        const char *end = c->line.bytes + c->line.len;
        uint64_t made = c->line.len ? number_at(json_field(c->line.bytes, c->line.len, "\"completion_tokens\""), end) : 0;
        for (uint64_t i = 0; i < made && i < tokens_wanted; i++) count_token(c, now);
        c->stream_done = made > 0;
    }
    if (!c->stream_done || c->tokens != tokens_wanted) {
        fail(c, FAIL_TRUNCATED);
        return;
    }
    requests_done++;
    if (sampled(now)) {
        window_done++;
        sample(&e2e, now - c->started_us);
        if (streaming && c->tokens > 1) sample(&tpot, (c->last_us - c->first_us) / (c->tokens - 1));
    }
    end_request(c);
    if (c->close_after) hang_up(c);
}

static bool take_head(struct connection *c, const char *head, size_t n) {
    if (n < 12 || memcmp(head, "HTTP/1.1 ", 9)) return false;
    c->status = (int)number_at(head + 9, head + 12);
    const char *value = header_value(head, n, "connection:"), *length = header_value(head, n, "content-length:");
    c->close_after = value && !strncasecmp(value, "close", 5);
    c->chunked = header_value(head, n, "transfer-encoding:") != NULL;
    c->left = number_at(length, head + n);
    c->phase = c->chunked ? CHUNK_SIZE : LENGTH;
    return c->chunked || length;
}

/* Takes what c->in holds. False: it is not HTTP as we know it. */
static bool take_answer(struct connection *c, uint64_t now) {
    while (c->busy && c->fd >= 0) {
        char *at = c->in.bytes + c->in.off;
        size_t have = c->in.len - c->in.off;
        if (c->phase == LENGTH || c->phase == CHUNK) {
            size_t part = have < c->left ? have : (size_t)c->left;
            if (part && !take_body(c, at, part, now)) return false;
            c->in.off += part;
            c->left -= part;
            if (c->left) return true;
            if (c->phase == LENGTH) end_answer(c, now);
            else c->phase = CHUNK_END;
            continue;
        }
        if (c->phase == HEAD) {
            char *end = have ? memmem(at, have, "\r\n\r\n", 4) : NULL;
            if (!end) return have <= MAX_HEAD_BYTES;
            c->in.off += (size_t)(end + 4 - at);
            if (!take_head(c, at, (size_t)(end + 4 - at))) return false;
            continue;
        }
        char *end = have ? memchr(at, '\n', have) : NULL;
        if (!end) return have <= MAX_HEAD_BYTES;
        c->in.off += (size_t)(end + 1 - at);
        if (c->phase == CHUNK_SIZE) {
            c->left = strtoull(at, NULL, 16);
            c->phase = c->left ? CHUNK : TRAILER;
        } else if (c->phase == CHUNK_END) {
            c->phase = CHUNK_SIZE;
        } else if (end - at <= 1) {
            end_answer(c, now);
        }
    }
    return true;
}

static void on_event(struct connection *c, uint32_t events) {
    if (c->fd < 0) return;
    if (c->fresh && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        int error = 0;
        socklen_t n = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        if (error) {
            if (c->busy) fail(c, FAIL_CONNECT);
            else hang_up(c);
            return;
        }
        c->fresh = false;
    }
    if ((events & EPOLLOUT) && c->busy) push(c);
    if (c->fd < 0 || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    buffer_room(&c->in, 16384);
    size_t room = c->in.cap - c->in.len;
    ssize_t n = recv(c->fd, c->in.bytes + c->in.len, room, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        if (c->busy) fail(c, c->phase == HEAD && c->in.off == c->in.len ? FAIL_CLOSED : FAIL_TRUNCATED);
        else hang_up(c);
        return;
    }
    c->in.len += (size_t)n;
    if (!c->busy || !take_answer(c, now_us())) {
        if (c->busy) fail(c, FAIL_PROTOCOL);
        else hang_up(c);
    }
}

static void report(uint64_t window_us, uint64_t cpu_us, uint64_t unfinished) {
    uint64_t failed = 0;
    printf("{\"requests_sent\":%llu,\"requests_done\":%llu,\"unfinished\":%llu,\"tokens\":%llu,\"window_s\":%.6f,\"cpu_s\":%.6f,"
           "\"window_done\":%llu,\"window_tokens\":%llu,\"arrivals_lost\":%llu,\"failures\":{",
           (unsigned long long)requests_sent, (unsigned long long)requests_done, (unsigned long long)unfinished,
           (unsigned long long)tokens_all, (double)window_us / 1e6, (double)cpu_us / 1e6, (unsigned long long)window_done,
           (unsigned long long)window_tokens, (unsigned long long)arrivals_lost);
    for (int i = 0; i < FAILURES; i++) {
        printf("%s\"%s\":%llu", i ? "," : "", failure_names[i], (unsigned long long)failures[i]);
        failed += failures[i];
    }
    printf("},\"failed\":%llu,\"statuses\":{\"3xx\":%llu,\"4xx\":%llu,\"5xx\":%llu}", (unsigned long long)failed,
           (unsigned long long)statuses[3], (unsigned long long)statuses[4], (unsigned long long)statuses[5]);
    print_samples("ttft", &ttft);
    print_samples("tpot", &tpot);
    print_samples("e2e", &e2e);
    puts("}");
}

static void read_targets(const char *list) {
    for (const char *at = list; *at && target_count < MAX_TARGETS; at += strcspn(at, ","), at += *at == ',')
        targets[target_count++] = loopback((uint16_t)strtoul(at, NULL, 10));
    if (!target_count) die("--ports needs a comma-separated list");
}

static void check_timeouts(uint64_t now) {
    for (int i = 0; i < connection_count; i++)
        if (connections[i].busy && now > connections[i].started_us + REQUEST_TIMEOUT_US) fail(&connections[i], FAIL_TIMEOUT);
}

/* Closed loop: every idle connection starts again. Open loop: arrivals that are due take idle connections. Returns when to wake. */
static uint64_t start_what_is_due(double rate, uint64_t now, uint64_t *next_arrival) {
    uint64_t wake = NEVER;
    if (rate > 0) {
        for (; *next_arrival <= now; *next_arrival += body_exponential_us(rate)) {
            if (waiting_tail - waiting_head == MAX_WAITING) arrivals_lost++;
            else waiting[waiting_tail++ % MAX_WAITING] = *next_arrival;
        }
        wake = *next_arrival;
    }
    for (int i = 0; i < connection_count && (rate <= 0 || waiting_head < waiting_tail); i++) {
        struct connection *c = &connections[i];
        if (c->busy) continue;
        if (c->retry_us > now) {
            if (c->retry_us < wake) wake = c->retry_us;
            continue;
        }
        start_request(c, rate > 0 ? waiting[waiting_head++ % MAX_WAITING] : now_us());
    }
    return wake;
}

static uint64_t run(double rate, uint64_t warmup_us, uint64_t duration_us, uint64_t grace_us) {
    struct epoll_event events[512];
    uint64_t start = now_us(), next_arrival = start, check_at = start + 1000000, cpu_from = 0, cpu = 0;
    sample_from = start + warmup_us;
    sample_until = sample_from + duration_us;
    for (uint64_t now = start; now < sample_until + grace_us; now = now_us()) {
        bool open = now < sample_until;
        if (!in_window && now >= sample_from) {
            cpu_from = clock_us(CLOCK_PROCESS_CPUTIME_ID);
            in_window = true;
        }
        if (!open && !cpu) cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID) - cpu_from;
        if (!open && !busy_count) break;
        uint64_t wake = open ? start_what_is_due(rate, now, &next_arrival) : sample_until + grace_us;
        uint64_t edge = now < sample_from ? sample_from : open ? sample_until : wake;
        if (edge < wake) wake = edge;
        if (check_at < wake) wake = check_at;
        int n = wait_until(epoll, events, 512, wake);
        for (int i = 0; i < n; i++) on_event(events[i].data.ptr, events[i].events);
        if (now >= check_at) {
            check_timeouts(now);
            check_at = now + 1000000;
        }
    }
    return cpu;
}

int main(int argc, char **argv) {
    struct option_value options[] = {
        {"--ports", ""},        {"--connections", "1"},  {"--rate", "0"},        {"--warmup-ms", "500"},   {"--duration-ms", "2000"},
        {"--grace-ms", "5000"}, {"--stream", "0"},       {"--max-tokens", "1"},  {"--model", "bench"},     {"--model-place", "last"},
        {"--body-bytes", "200"}, {"--sessions", "0"},    {"--turns", "1"},       {"--shared-bytes", "0"},  {"--tail-percent", "25"},
        {"--body-file", ""},    {"--session-header", "0"}, {"--seed", "1"},      {"--path", "/v1/chat/completions"},
        {"--ramp-ms", "0"},
    };
    read_options(argc, argv, options, sizeof options / sizeof options[0]);
    read_targets(options[0].value);
    connection_count = (int)option_number(&options[1], 1, MAX_CONNECTIONS);
    uint64_t ramp_us = option_number(&options[19], 0, 600000) * 1000;
    double rate = strtod(options[2].value, NULL);
    streaming = option_number(&options[6], 0, 1);
    tokens_wanted = (uint32_t)option_number(&options[7], 1, 1000000);
    struct body_plan plan = {
        .path = options[18].value, .model = options[8].value, .model_first = !strcmp(options[9].value, "first"), .stream = streaming,
        .max_tokens = tokens_wanted, .body_bytes = option_number(&options[10], 150, 64u << 20),
        .sessions = option_number(&options[11], 0, 1u << 20), .turns = option_number(&options[12], 1, 10000),
        .shared_bytes = option_number(&options[13], 0, BODY_POOL_BYTES / 2), .tail_percent = option_number(&options[14], 0, 100),
        .file = options[15].value, .session_header = option_number(&options[16], 0, 1), .seed = option_number(&options[17], 1, UINT32_MAX)};
    body_open(&plan);
    connections = calloc((size_t)connection_count, sizeof *connections);
    waiting = calloc(MAX_WAITING, sizeof *waiting);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !waiting || epoll < 0) die("out of memory");
    for (int i = 0; i < connection_count; i++) {
        connections[i].fd = -1;
        connections[i].target = i % target_count;
        connections[i].retry_us = now_us() + ramp_us * (uint64_t)i / (uint64_t)connection_count;
    }
    uint64_t duration_us = option_number(&options[4], 100, 3600000) * 1000;
    uint64_t cpu = run(rate, option_number(&options[3], 0, 600000) * 1000, duration_us, option_number(&options[5], 0, 600000) * 1000);
    report(duration_us, cpu, (uint64_t)busy_count);
}
