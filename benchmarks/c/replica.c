/* The bench replica: N listen ports in one epoll thread, each an OpenAI-compatible engine that costs next to nothing.
 *
 * A chat or text completion gets its headers at once (as vLLM does), its first token ttft_us after its body was read and each
 * later token itl_us after the one before it, on an absolute schedule. How late each token really left is counted, so that a
 * run in which the replica was the bottleneck can be told. GET /mock/stats shows the counters; GET /mock/set changes the times. */
#define _GNU_SOURCE
#include "due.h"
#include "token_ids.h"
#include "wire.h"

#define MAX_REPLICAS 64
#define MAX_BODY (64u << 20)   /* bytes of one request body */
#define MAX_PENDING (1u << 20) /* bytes that a client may leave unread before it is dropped */
#define SCAN_BYTES 2048        /* of a body's head and tail: where the fields beside the prompt stand */
#define LATE_US 2000           /* a token that leaves later than this is late */

struct counters {
    uint64_t requests, completed, aborted, tokens, late_tokens, late_max_us, renders, tokenizes, probes, body_bytes;
};

struct connection {
    struct due due; /* first: the heap holds pointers to it */
    int fd, replica;
    struct buffer in, out;
    size_t body_at, body_bytes; /* of the request that is being read; body_at 0: its head is not complete */
    uint32_t tokens_left, tokens_made;
    uint64_t number;
    bool running, stream, chat, writable_wanted;
};

static struct connection *connections[MAX_FDS];
static struct counters counters[MAX_REPLICAS];
static int epoll, replica_count, listen_fd_replica[MAX_FDS]; /* of a listening fd: its replica + 1 */
static uint64_t ttft_us, itl_us, sequence, running[MAX_REPLICAS];
static const char *model;

static void drop(struct connection *c) {
    if (c->running) {
        counters[c->replica].aborted++;
        running[c->replica]--;
    }
    due_cancel(&c->due);
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->in.bytes);
    free(c->out.bytes);
    free(c);
}

static void want_writable(struct connection *c, bool wanted) {
    if (c->writable_wanted == wanted) return;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0u), .data.fd = c->fd};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    c->writable_wanted = wanted;
}

/* Sends what is in out. False: the connection is gone. */
static bool flush(struct connection *c) {
    while (c->out.off < c->out.len) {
        ssize_t n = send(c->fd, c->out.bytes + c->out.off, c->out.len - c->out.off, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN && c->out.len - c->out.off <= MAX_PENDING) {
                want_writable(c, true);
                return true;
            }
            drop(c);
            return false;
        }
        c->out.off += (size_t)n;
    }
    c->out.off = c->out.len = 0;
    want_writable(c, false);
    return true;
}

static void answer(struct connection *c, const char *status, const char *type, const char *body, size_t n) {
    buffer_print(&c->out, "HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n", status, type, n);
    buffer_put(&c->out, body, n);
}

static void answer_json(struct connection *c, const struct buffer *body) {
    answer(c, "200 OK", "application/json", body->bytes, body->len);
}

static void put_chunk(struct connection *c, const char *event, int n) {
    buffer_print(&c->out, "%x\r\n", (unsigned)n);
    buffer_put(&c->out, event, (size_t)n);
    buffer_put(&c->out, "\r\n", 2);
}

static void put_event(struct connection *c, const char *delta, const char *finish) {
    char event[512];
    int n = snprintf(event, sizeof event,
                     "data: {\"id\":\"%s-r%d-%llu\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"%s\",\"choices\":[{\"index\":0,"
                     "%s,\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                     c->chat ? "chatcmpl" : "cmpl", c->replica, (unsigned long long)c->number,
                     c->chat ? "chat.completion.chunk" : "text_completion", model, delta, finish);
    put_chunk(c, event, n);
}

static void finish(struct connection *c) {
    c->running = false;
    running[c->replica]--;
    counters[c->replica].completed++;
    due_cancel(&c->due);
}

/* One token of a stream is due. */
static void put_token(struct connection *c) {
    bool last = c->tokens_left == 1;
    if (!c->tokens_made && c->chat) put_event(c, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}", "null");
    put_event(c, c->chat ? "\"delta\":{\"content\":\" word\"}" : "\"text\":\" word\"", last ? "\"length\"" : "null");
    if (last) {
        put_chunk(c, "data: [DONE]\n\n", 14);
        buffer_put(&c->out, "0\r\n\r\n", 5);
    }
}

static void put_whole(struct connection *c) {
    char text[768];
    const char *shape = c->chat ? "\"message\":{\"role\":\"assistant\",\"content\":\" word\"}" : "\"text\":\" word\"";
    int n = snprintf(text, sizeof text,
                     "{\"id\":\"%s-r%d-%llu\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"%s\",\"choices\":[{\"index\":0,%s,"
                     "\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu,"
                     "\"completion_tokens\":%u}}",
                     c->chat ? "chatcmpl" : "cmpl", c->replica, (unsigned long long)c->number,
                     c->chat ? "chat.completion" : "text_completion", model, shape, c->body_bytes / TOKEN_BYTES,
                     c->body_bytes / TOKEN_BYTES + c->tokens_left, c->tokens_left);
    answer(c, "200 OK", "application/json", text, (size_t)n);
}

static void make_due_token(struct connection *c, uint64_t now) {
    struct counters *count = &counters[c->replica];
    uint64_t late = now > c->due.at_us ? now - c->due.at_us : 0;
    uint32_t made = c->stream ? 1 : c->tokens_left;
    if (late > LATE_US) count->late_tokens += made;
    if (late > count->late_max_us) count->late_max_us = late;
    count->tokens += made;
    if (c->stream) put_token(c);
    else put_whole(c);
    c->tokens_made += made;
    c->tokens_left -= made;
    if (c->tokens_left) due_set(&c->due, c->due.at_us + itl_us);
    else finish(c);
}

/* A field that stands before or after the prompt. */
static const char *outer_field(const char *body, size_t n, const char *key, const char **end) {
    size_t tail = n < SCAN_BYTES ? n : SCAN_BYTES;
    const char *at = json_field(body + n - tail, tail, key);
    *end = body + n;
    return at || n <= SCAN_BYTES ? at : json_field(body, SCAN_BYTES, key);
}

static void start_completion(struct connection *c, const char *body, size_t n, bool chat, uint64_t now) {
    const char *end, *at = outer_field(body, n, "\"max_tokens\"", &end);
    if (!at) at = outer_field(body, n, "\"max_completion_tokens\"", &end);
    uint64_t tokens = number_at(at, end);
    at = outer_field(body, n, "\"stream\"", &end);
    c->stream = at && *at == 't';
    c->chat = chat;
    c->tokens_made = 0;
    c->tokens_left = tokens && tokens < 1000000 ? (uint32_t)tokens : 16; /* OpenAI's default for completions */
    c->number = ++sequence;
    c->running = true;
    running[c->replica]++;
    counters[c->replica].requests++;
    counters[c->replica].body_bytes += n;
    if (c->stream)
        buffer_print(&c->out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    uint64_t wait = ttft_us + (c->stream ? 0 : itl_us * (c->tokens_left - 1));
    due_set(&c->due, now + wait);
    if (!wait) make_due_token(c, now);
}

static void answer_tokens(struct connection *c, const char *body, size_t n, bool render) {
    struct buffer text = {0};
    size_t count;
    if (render) {
        buffer_print(&text, "{\"request_id\":\"render-r%d-%llu\",\"model\":\"%s\",\"token_ids\":[", c->replica,
                     (unsigned long long)++sequence, model);
        put_token_ids(&text, body, n, &count);
        buffer_print(&text, "],\"sampling_params\":{},\"features\":null,\"stream\":false}");
        counters[c->replica].renders++;
    } else {
        buffer_print(&text, "{\"max_model_len\":131072,\"tokens\":[");
        put_token_ids(&text, body, n, &count);
        buffer_print(&text, "],\"count\":%zu}", count);
        counters[c->replica].tokenizes++;
    }
    answer_json(c, &text);
    free(text.bytes);
}

static void put_counters(struct buffer *text, const struct counters *k, uint64_t now_running) {
    buffer_print(text,
                 "{\"requests\":%llu,\"completed\":%llu,\"aborted\":%llu,\"running\":%llu,\"tokens\":%llu,\"late_tokens\":%llu,"
                 "\"late_max_us\":%llu,\"renders\":%llu,\"tokenizes\":%llu,\"probes\":%llu,\"body_bytes\":%llu}",
                 (unsigned long long)k->requests, (unsigned long long)k->completed, (unsigned long long)k->aborted,
                 (unsigned long long)now_running, (unsigned long long)k->tokens, (unsigned long long)k->late_tokens,
                 (unsigned long long)k->late_max_us, (unsigned long long)k->renders, (unsigned long long)k->tokenizes,
                 (unsigned long long)k->probes, (unsigned long long)k->body_bytes);
}

static void answer_stats(struct connection *c) {
    struct buffer text = {0};
    buffer_print(&text, "{\"replicas\":[");
    for (int r = 0; r < replica_count; r++) {
        if (r) buffer_put(&text, ",", 1);
        put_counters(&text, &counters[r], running[r]);
    }
    buffer_print(&text, "]}");
    answer_json(c, &text);
    free(text.bytes);
}

static void answer_metrics(struct connection *c) {
    struct buffer text = {0};
    const struct counters *k = &counters[c->replica];
    buffer_print(&text, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"%s\"} %llu\n", model,
                 (unsigned long long)running[c->replica]);
    buffer_print(&text, "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"%s\"} 0\n", model);
    buffer_print(&text, "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"%s\"} 0\n", model);
    buffer_print(&text, "# TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total{engine=\"0\",model_name=\"%s\"} %llu\n", model,
                 (unsigned long long)k->tokens);
    buffer_print(&text, "# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"28000\"} 1\n");
    answer(c, "200 OK", "text/plain; version=0.0.4", text.bytes, text.len);
    free(text.bytes);
}

static void set_times(const char *query, const char *end) {
    const char *at = memmem(query, (size_t)(end - query), "ttft_us=", 8);
    if (at) ttft_us = number_at(at + 8, end);
    at = memmem(query, (size_t)(end - query), "itl_us=", 7);
    if (at) itl_us = number_at(at + 7, end);
    for (int r = 0; r < replica_count; r++) counters[r].late_max_us = 0;
}

static bool starts(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }

static void serve_get(struct connection *c, const char *path, const char *end) {
    struct buffer text = {0};
    if (!starts(path, "/mock/")) counters[c->replica].probes++;
    if (starts(path, "/mock/stats ")) {
        answer_stats(c);
    } else if (starts(path, "/metrics ")) {
        answer_metrics(c);
    } else if (starts(path, "/health ") || starts(path, "/ping ") || starts(path, "/readiness ")) {
        answer(c, "200 OK", "application/json", "", 0);
    } else if (starts(path, "/v1/models ")) {
        buffer_print(&text, "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"vllm\","
                     "\"root\":\"%s\",\"parent\":null,\"max_model_len\":131072}]}", model, model);
        answer_json(c, &text);
    } else if (starts(path, "/version ")) {
        answer(c, "200 OK", "application/json", "{\"version\":\"0.32.0\"}", 20);
    } else if (starts(path, "/load ")) {
        buffer_print(&text, "{\"server_load\":%llu}", (unsigned long long)running[c->replica]);
        answer_json(c, &text);
    } else if (starts(path, "/mock/set?")) {
        set_times(path, end);
        answer(c, "200 OK", "application/json", "{}", 2);
    } else {
        answer(c, "404 Not Found", "application/json", "{\"detail\":\"Not Found\"}", 22);
    }
    free(text.bytes);
}

static void serve(struct connection *c, const char *head, size_t head_n, const char *body, size_t n, uint64_t now) {
    const char *path = memchr(head, ' ', head_n);
    path = path ? path + 1 : head;
    if (starts(head, "GET ")) serve_get(c, path, head + head_n);
    else if (starts(path, "/v1/chat/completions ")) start_completion(c, body, n, true, now);
    else if (starts(path, "/v1/completions ")) start_completion(c, body, n, false, now);
    else if (starts(path, "/v1/chat/completions/render ") || starts(path, "/v1/completions/render ")) answer_tokens(c, body, n, true);
    else if (starts(path, "/tokenize ")) answer_tokens(c, body, n, false);
    else answer(c, "404 Not Found", "application/json", "{\"detail\":\"Not Found\"}", 22);
}

/* Takes whole requests out of c->in, one at a time: the next waits until the one before is answered. False: dropped. */
static bool take_requests(struct connection *c, uint64_t now) {
    while (!c->running) {
        char *start = c->in.bytes + c->in.off;
        size_t have = c->in.len - c->in.off;
        if (!c->body_at) {
            char *end = have ? memmem(start, have, "\r\n\r\n", 4) : NULL;
            if (!end && have <= MAX_HEAD_BYTES) break;
            size_t head_n = end ? (size_t)(end + 4 - start) : 0;
            const char *length = end ? header_value(start, head_n, "content-length:") : NULL;
            if (!end || header_value(start, head_n, "transfer-encoding:")) {
                drop(c); /* every client of a benchmark announces its body's length */
                return false;
            }
            c->body_at = head_n;
            c->body_bytes = number_at(length, end);
            if (c->body_bytes > MAX_BODY) {
                drop(c);
                return false;
            }
        }
        size_t whole = c->body_at + c->body_bytes;
        if (have < whole) {
            buffer_room(&c->in, whole - have);
            break;
        }
        serve(c, start, c->body_at, start + c->body_at, c->body_bytes, now);
        c->in.off += whole;
        c->body_at = 0;
    }
    return flush(c);
}

static void on_readable(struct connection *c) {
    for (;;) {
        buffer_room(&c->in, 16384);
        size_t room = c->in.cap - c->in.len;
        ssize_t n = recv(c->fd, c->in.bytes + c->in.len, room, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) {
            drop(c);
            return;
        }
        c->in.len += (size_t)n;
        if ((size_t)n < room) break; /* drained: epoll tells when there is more */
    }
    take_requests(c, now_us());
}

static void on_acceptable(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        no_delay(fd);
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("out of memory");
        c->fd = fd;
        c->due.place = -1;
        c->replica = listen_fd_replica[listener] - 1;
        connections[fd] = c;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

static void make_due_tokens(void) {
    uint64_t now = now_us();
    while (due_next() <= now) {
        struct connection *c = (struct connection *)due_first();
        make_due_token(c, now);
        if (!flush(c)) continue;
        if (!c->running && c->in.off < c->in.len) take_requests(c, now);
        now = now_us(); /* sending to many streams takes longer than the clock's step: lateness counts it */
    }
}

static void open_listener(int replica, uint16_t port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = loopback(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096))
        die("cannot listen on 127.0.0.1:%u: %s", port, strerror(errno));
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    listen_fd_replica[fd] = replica + 1;
}

int main(int argc, char **argv) {
    struct option_value options[] = {{"--ports", ""}, {"--ttft-us", "0"}, {"--itl-us", "0"}, {"--model", "bench"}};
    read_options(argc, argv, options, 4);
    ttft_us = option_number(&options[1], 0, 600000000);
    itl_us = option_number(&options[2], 0, 60000000);
    model = options[3].value;
    if (strlen(model) > 64 || strpbrk(model, "\"\\%")) die("--model must be at most 64 plain characters");
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (const char *at = options[0].value; *at && replica_count < MAX_REPLICAS; at += strcspn(at, ","), at += *at == ',')
        open_listener(replica_count++, (uint16_t)strtoul(at, NULL, 10));
    if (!replica_count) die("--ports needs a comma-separated list");
    puts("ready");
    fflush(stdout);
    struct epoll_event events[256];
    for (;;) {
        int n = wait_until(epoll, events, 256, due_next());
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (listen_fd_replica[fd]) {
                on_acceptable(fd);
                continue;
            }
            if (connections[fd] && (events[i].events & EPOLLOUT) && !flush(connections[fd])) continue;
            if (connections[fd] && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) on_readable(connections[fd]);
        }
        make_due_tokens();
    }
}
