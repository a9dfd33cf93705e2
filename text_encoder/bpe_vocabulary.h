/* What a byte-pair tokenizer knows: ids of single bytes, ranked merges of two ids into one, and special tokens.
   Sources: the merges embedded in the program (CLIP's), or the tokenizer folder of a diffusers model. */
#ifndef VULORA_TEXT_ENCODER_BPE_VOCABULARY_H
#define VULORA_TEXT_ENCODER_BPE_VOCABULARY_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* `left` next to `right` becomes `joined`; the lowest rank goes first. */
typedef struct bpe_merge {
    int32_t left, right; /* left < 0: an empty slot of the table */
    int32_t joined;
    uint32_t rank;
} bpe_merge;

/* A token that stands for itself wherever its text occurs: in the text as typed, or (normalized) after lower-casing. */
typedef struct bpe_special {
    char *text;
    size_t size;
    int32_t id;
    bool normalized;
} bpe_special;

typedef struct bpe_vocabulary {
    int32_t count;            /* highest id + 1: rows that the token embedding needs */
    int32_t byte_inside[256]; /* id of a byte within a word, */
    int32_t byte_last[256];   /* and of one that ends it ("</w>"); -1: not in the vocabulary */
    int32_t start, end, pad, unknown;
    bpe_merge *merges; /* open addressing; `slots` is a power of two */
    size_t slots;
    bpe_special *specials;
    size_t special_count;
} bpe_vocabulary;

/* CLIP's 49408 tokens: 256 bytes, 256 bytes at a word's end, 48894 merges, start and end. */
bool bpe_vocabulary_builtin(bpe_vocabulary *vocabulary, error *err);

/* `folder` holds tokenizer.json, or vocab.json and merges.txt; tokenizer_config.json may name the special tokens. */
bool bpe_vocabulary_folder(bpe_vocabulary *vocabulary, const char *folder, error *err);

void bpe_vocabulary_free(bpe_vocabulary *vocabulary);

/* The merge of two neighbours, or NULL. */
const bpe_merge *bpe_vocabulary_merge(const bpe_vocabulary *vocabulary, int32_t left, int32_t right);

/* Writes the printable characters that vocabulary files use for one byte (GPT-2's byte alphabet) as UTF-8; returns 1 or 2. */
size_t bpe_byte_text(uint8_t byte, char out[2]);
bool bpe_byte_printable(uint8_t byte); /* stands for itself in that alphabet */

#endif
