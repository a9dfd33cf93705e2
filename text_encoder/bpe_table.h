/* Filling a vocabulary: a map from token text to id, and merges given as pairs of texts. */
#ifndef VULORA_TEXT_ENCODER_BPE_TABLE_H
#define VULORA_TEXT_ENCODER_BPE_TABLE_H

#include "text_encoder/bpe_vocabulary.h"

/* Token text -> id; open addressing, texts are copied. */
typedef struct bpe_texts {
    struct bpe_text {
        char *text;
        size_t size;
        int32_t id;
    } * entries;
    size_t slots, used;
} bpe_texts;

void bpe_texts_put(bpe_texts *texts, const char *text, size_t size, int32_t id);
int32_t bpe_texts_get(const bpe_texts *texts, const char *text, size_t size); /* -1: unknown */
void bpe_texts_free(bpe_texts *texts);

/* Makes room for `count` merges. */
void bpe_merges_reserve(bpe_vocabulary *vocabulary, size_t count);

/* A merge of two texts that `texts` knows, as well as their concatenation; a pair given again takes the later rank. */
bool bpe_merges_add(bpe_vocabulary *vocabulary, const bpe_texts *texts, const char *left, size_t left_size, const char *right,
                    size_t right_size, uint32_t rank, error *err);

/* byte_inside and byte_last from the texts. */
void bpe_bytes_fill(bpe_vocabulary *vocabulary, const bpe_texts *texts);

void bpe_special_add(bpe_vocabulary *vocabulary, const char *text, int32_t id, bool normalized);

#endif
