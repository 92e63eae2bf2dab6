/* What /tokenize and /render answer: token ids that cost little and are always the same for the same prompt. */
#ifndef SLIPSTREAM_BENCH_TOKEN_IDS_H
#define SLIPSTREAM_BENCH_TOKEN_IDS_H

#include "wire.h"

#define TOKEN_BYTES 4 /* prompt bytes that make one token */
#define VOCABULARY 32000

/* Token ids that depend on the prompt's bytes alone: equal prefixes have equal ids. */
static void put_token_ids(struct buffer *to, const char *body, size_t n, size_t *count) {
    const char *at = memmem(body, n, "\"content\"", 9);
    if (!at) at = memmem(body, n, "\"prompt\"", 8);
    const unsigned char *p = (const unsigned char *)(at ? at : body), *end = (const unsigned char *)body + n;
    buffer_room(to, (size_t)(end - p) / TOKEN_BYTES * 6 + 64);
    char *out = to->bytes + to->len;
    for (*count = 0; p + TOKEN_BYTES <= end; p += TOKEN_BYTES, ++*count) {
        uint32_t word;
        memcpy(&word, p, sizeof word);
        uint32_t id = (uint32_t)((word * 2654435761u) >> 8) % VOCABULARY;
        char digits[8];
        int k = 0;
        do digits[k++] = (char)('0' + id % 10);
        while (id /= 10);
        if (*count) *out++ = ',';
        while (k) *out++ = digits[--k];
    }
    to->len = (size_t)(out - to->bytes);
}

#endif
