#include "pipeline/words.h"

#include "base/memory.h"
#include "lora/words.h"

#include <stdlib.h>
#include <string.h>

/* Word number `index` of the stack and the first of its ids, NULL behind the last. */
static const adapter_word *word_at(const pipeline *p, int index, int64_t *first) {
    *first = p->text.vocabulary;
    for (int i = 0; i < adapter_stack_count(p->adapters); i++) {
        const adapter *a = adapter_stack_at(p->adapters, i);
        for (int j = 0; j < a->word_count; j++) {
            if (index-- == 0) return &a->words[j];
            *first += a->words[j].count;
        }
    }
    return NULL;
}

typedef struct word_ids {
    const adapter_word *word;
    int32_t *ids; /* of its name */
    size_t count;
    int64_t first;
} word_ids;

/* The word whose name stands at the start of ids. */
static const word_ids *word_here(const word_ids *words, int count, const int32_t *ids, size_t left) {
    const word_ids *best = NULL;
    for (int i = 0; i < count; i++) {
        const word_ids *w = &words[i];
        bool here = w->count > 0 && w->count <= left && memcmp(w->ids, ids, w->count * sizeof *ids) == 0;
        if (here && (!best || w->count >= best->count)) best = w;
    }
    return best;
}

size_t pipeline_encode_words(void *user, const char *text, int32_t *ids, size_t capacity) {
    const pipeline *p = user;
    int32_t *plain = NULL;
    size_t plain_count = 0, used = 0;
    if (!tokenizer_encode(p->tokenizer, text, strlen(text), &plain, &plain_count, NULL)) return 0;
    word_ids *words = NULL;
    int count = 0;
    int64_t first;
    for (const adapter_word *w; (w = word_at(p, count, &first)); count++) {
        words = memory_grow(words, (size_t)count + 1, sizeof *words);
        words[count] = (word_ids){.word = w, .first = first};
        tokenizer_encode(p->tokenizer, w->name, strlen(w->name), &words[count].ids, &words[count].count, NULL);
    }
    for (size_t i = 0; i < plain_count;) {
        const word_ids *w = word_here(words, count, plain + i, plain_count - i);
        int64_t vectors = w ? w->word->count : 1;
        for (int64_t k = 0; k < vectors; k++, used++)
            if (ids && used < capacity) ids[used] = w ? (int32_t)(w->first + k) : plain[i];
        i += w ? w->count : 1;
    }
    for (int i = 0; i < count; i++) free(words[i].ids);
    free(words);
    free(plain);
    return used;
}

int pipeline_word_length(void *user, int32_t id) {
    const pipeline *p = user;
    int64_t first;
    const adapter_word *w;
    for (int i = 0; id >= p->text.vocabulary && (w = word_at(p, i, &first)); i++)
        if (first == id) return (int)w->count;
    return 1;
}

float *pipeline_word_vectors(const pipeline *p, int64_t *count) {
    int64_t first, width = p->text.width;
    float *vectors = NULL;
    const adapter_word *w;
    *count = 0;
    for (int i = 0; (w = word_at(p, i, &first)); i++) {
        size_t elements = (size_t)(w->count * width);
        vectors = memory_grow(vectors, (size_t)(*count * width) + elements, sizeof *vectors);
        memcpy(vectors + *count * width, w->vectors, elements * sizeof *vectors);
        *count += w->count;
    }
    return vectors;
}
