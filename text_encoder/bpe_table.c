#include "text_encoder/bpe_table.h"

#include "base/memory.h"
#include "text_encoder/bpe_split.h"

#include <stdlib.h>
#include <string.h>

#define WORD_END "</w>"

static uint64_t text_hash(const char *text, size_t size) { /* FNV-1a */
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < size; i++) hash = (hash ^ (uint8_t)text[i]) * UINT64_C(1099511628211);
    return hash;
}

static struct bpe_text *text_slot(const bpe_texts *texts, const char *text, size_t size) {
    size_t slot = (size_t)text_hash(text, size) & (texts->slots - 1);
    while (texts->entries[slot].text && (texts->entries[slot].size != size || memcmp(texts->entries[slot].text, text, size) != 0))
        slot = (slot + 1) & (texts->slots - 1);
    return &texts->entries[slot];
}

static void texts_grow(bpe_texts *texts) {
    bpe_texts bigger = {.slots = texts->slots ? texts->slots * 2 : 4096, .used = texts->used};
    bigger.entries = memory_new(bigger.slots, sizeof *bigger.entries);
    for (size_t i = 0; i < texts->slots; i++)
        if (texts->entries[i].text) *text_slot(&bigger, texts->entries[i].text, texts->entries[i].size) = texts->entries[i];
    free(texts->entries);
    *texts = bigger;
}

void bpe_texts_put(bpe_texts *texts, const char *text, size_t size, int32_t id) {
    if (texts->used * 2 >= texts->slots) texts_grow(texts);
    struct bpe_text *slot = text_slot(texts, text, size);
    if (!slot->text) {
        slot->text = memory_new(size + 1, 1);
        memcpy(slot->text, text, size);
        slot->size = size;
        texts->used++;
    }
    slot->id = id;
}

int32_t bpe_texts_get(const bpe_texts *texts, const char *text, size_t size) {
    if (!texts->slots) return -1;
    const struct bpe_text *slot = text_slot(texts, text, size);
    return slot->text ? slot->id : -1;
}

void bpe_texts_free(bpe_texts *texts) {
    for (size_t i = 0; i < texts->slots; i++) free(texts->entries[i].text);
    free(texts->entries);
    *texts = (bpe_texts){0};
}

void bpe_merges_reserve(bpe_vocabulary *vocabulary, size_t count) {
    size_t slots = 16;
    while (slots < 2 * count) slots *= 2;
    vocabulary->slots = slots;
    vocabulary->merges = memory_new(slots, sizeof *vocabulary->merges);
    for (size_t i = 0; i < slots; i++) vocabulary->merges[i].left = -1;
}

/* The slot of that pair, or the empty one where it would go. */
static bpe_merge *merge_slot(const bpe_vocabulary *vocabulary, int32_t left, int32_t right) {
    uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * UINT64_C(0x9E3779B97F4A7C15);
    size_t slot = (size_t)(key >> 32) & (vocabulary->slots - 1);
    while (vocabulary->merges[slot].left >= 0 && (vocabulary->merges[slot].left != left || vocabulary->merges[slot].right != right))
        slot = (slot + 1) & (vocabulary->slots - 1);
    return &vocabulary->merges[slot];
}

const bpe_merge *bpe_vocabulary_merge(const bpe_vocabulary *vocabulary, int32_t left, int32_t right) {
    if (!vocabulary->slots || left < 0 || right < 0) return NULL;
    const bpe_merge *slot = merge_slot(vocabulary, left, right);
    return slot->left >= 0 ? slot : NULL;
}

bool bpe_merges_add(bpe_vocabulary *vocabulary, const bpe_texts *texts, const char *left, size_t left_size, const char *right,
                    size_t right_size, uint32_t rank, error *err) {
    char *joined = memory_new(left_size + right_size + 1, 1);
    memcpy(joined, left, left_size);
    memcpy(joined + left_size, right, right_size);
    bpe_merge merge = {bpe_texts_get(texts, left, left_size), bpe_texts_get(texts, right, right_size),
                       bpe_texts_get(texts, joined, left_size + right_size), rank};
    free(joined);
    if (merge.left < 0 || merge.right < 0 || merge.joined < 0)
        return error_set(err, "merge %u, \"%.*s %.*s\", uses or makes a token that the vocabulary lacks", rank + 1, (int)left_size, left,
                         (int)right_size, right);
    *merge_slot(vocabulary, merge.left, merge.right) = merge;
    return true;
}

bool bpe_byte_printable(uint8_t byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174; }

size_t bpe_byte_text(uint8_t byte, char out[2]) {
    /* Printable Latin-1 stands for itself, the other 68 bytes take U+0100 and up in order. */
    uint32_t code = byte;
    if (!bpe_byte_printable(byte)) code = 256u + (byte <= 32 ? byte : byte <= 160 ? byte - 127u + 33u : 67u);
    if (code < 128) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xC0 | (code >> 6));
    out[1] = (char)(0x80 | (code & 0x3F));
    return 2;
}

void bpe_bytes_fill(bpe_vocabulary *vocabulary, const bpe_texts *texts) {
    for (int byte = 0; byte < 256; byte++) {
        char text[2 + sizeof WORD_END];
        size_t size = bpe_byte_text((uint8_t)byte, text);
        vocabulary->byte_inside[byte] = bpe_texts_get(texts, text, size);
        memcpy(text + size, WORD_END, sizeof WORD_END - 1);
        vocabulary->byte_last[byte] = bpe_texts_get(texts, text, size + sizeof WORD_END - 1);
    }
}

void bpe_special_add(bpe_vocabulary *vocabulary, const char *text, int32_t id, bool normalized) {
    if (!*text) return;
    error ignored;
    size_t size = strlen(text);
    char *lower = normalized ? bpe_normalize(text, size, &size, &ignored) : NULL;
    char *kept = lower ? lower : memory_string(text);
    size_t at = 0;
    while (at < vocabulary->special_count && strcmp(vocabulary->specials[at].text, kept) != 0) at++;
    if (at < vocabulary->special_count) {
        free(vocabulary->specials[at].text);
    } else {
        vocabulary->specials = memory_grow(vocabulary->specials, ++vocabulary->special_count, sizeof *vocabulary->specials);
    }
    vocabulary->specials[at] = (bpe_special){kept, size, id, normalized};
}

void bpe_vocabulary_free(bpe_vocabulary *vocabulary) {
    for (size_t i = 0; i < vocabulary->special_count; i++) free(vocabulary->specials[i].text);
    free(vocabulary->specials);
    free(vocabulary->merges);
    *vocabulary = (bpe_vocabulary){0};
}
