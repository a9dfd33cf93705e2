/* From weighted pieces of text to the chunks of 77 token ids that the text encoder takes. */
#include "diffusion/prompt.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { COMMA_BACKTRACK = 20 };

typedef struct builder {
    prompt_chunks *chunks;
    const prompt_tokenizer *tokenizer;
    int32_t ids[PROMPT_CHUNK_TEXT]; /* the chunk being filled, without start and end */
    float weights[PROMPT_CHUNK_TEXT];
    int count, comma; /* comma: tokens up to the last comma, it included; 0 without one */
} builder;

/* Ends the chunk with its first `length` tokens; the others begin the next one. */
static void close_chunk(builder *b, int length) {
    prompt_chunks *c = b->chunks;
    size_t base = (size_t)c->count++ * PROMPT_CHUNK;
    c->ids = memory_grow(c->ids, base + PROMPT_CHUNK, sizeof *c->ids);
    c->weights = memory_grow(c->weights, base + PROMPT_CHUNK, sizeof *c->weights);
    for (int i = 0; i < PROMPT_CHUNK; i++) {
        bool text = i >= 1 && i <= length;
        c->ids[base + (size_t)i] = text ? b->ids[i - 1] : i == 0 ? b->tokenizer->start_id : b->tokenizer->end_id;
        c->weights[base + (size_t)i] = text ? b->weights[i - 1] : 1;
    }
    b->count -= length;
    b->comma = 0;
    memmove(b->ids, b->ids + length, (size_t)b->count * sizeof *b->ids);
    memmove(b->weights, b->weights + length, (size_t)b->count * sizeof *b->weights);
}

/* Ends a full chunk, and one that has not the place for what must stay together. */
static void make_room(builder *b, int32_t id, int32_t comma_id) {
    if (b->count == PROMPT_CHUNK_TEXT) {
        /* webui counts the distance from the comma itself to the end of the chunk */
        bool near = b->comma && PROMPT_CHUNK_TEXT - (b->comma - 1) <= COMMA_BACKTRACK && id != comma_id;
        close_chunk(b, near ? b->comma : PROMPT_CHUNK_TEXT);
        /* a comma on the very last place: nothing moved, the chunk is whole */
    }
    int together = b->tokenizer->together ? b->tokenizer->together(b->tokenizer->user, id) : 1;
    if (b->count + together > PROMPT_CHUNK_TEXT) close_chunk(b, b->count);
}

static void add_token(builder *b, int32_t id, float weight, int32_t comma_id) {
    make_room(b, id, comma_id);
    b->ids[b->count] = id;
    b->weights[b->count++] = weight;
    if (id == comma_id) b->comma = b->count;
    b->chunks->tokens++;
}

static int32_t *encode(const prompt_tokenizer *tokenizer, const char *text, size_t *count) {
    size_t capacity = strlen(text) + 1;
    int32_t *ids = memory_new(capacity, sizeof *ids);
    *count = tokenizer->encode(tokenizer->user, text, ids, capacity);
    if (*count > capacity) {
        ids = memory_grow(ids, *count, sizeof *ids);
        *count = tokenizer->encode(tokenizer->user, text, ids, *count);
    }
    return ids;
}

void prompt_chunks_build(prompt_chunks *chunks, const prompt_fragments *fragments, const prompt_tokenizer *tokenizer) {
    memset(chunks, 0, sizeof *chunks);
    builder b = {.chunks = chunks, .tokenizer = tokenizer};
    size_t count;
    int32_t *comma = encode(tokenizer, ",", &count), comma_id = count == 1 ? comma[0] : -1;
    free(comma);
    for (int f = 0; f < fragments->count; f++) {
        const prompt_fragment *fragment = &fragments->items[f];
        if (fragment->is_break) {
            close_chunk(&b, b.count);
            continue;
        }
        int32_t *ids = encode(tokenizer, fragment->text, &count);
        for (size_t i = 0; i < count; i++) add_token(&b, ids[i], fragment->weight, comma_id);
        free(ids);
    }
    if (b.count || !chunks->count) close_chunk(&b, b.count);
}

void prompt_chunks_free(prompt_chunks *chunks) {
    free(chunks->ids);
    free(chunks->weights);
    memset(chunks, 0, sizeof *chunks);
}
