#include "text_encoder/bpe_split.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

size_t bpe_utf8_check(const char *text, size_t size) {
    size_t at = 0;
    while (at < size) {
        utf8proc_int32_t code;
        utf8proc_ssize_t step = utf8proc_iterate((const uint8_t *)text + at, (utf8proc_ssize_t)(size - at), &code);
        if (step < 1) return at;
        at += (size_t)step;
    }
    return size;
}

static size_t put_lower(int32_t code, char *out) {
    if (code == 0x130) { /* the one character whose lower case is two, which utf8proc's simple mapping does not know */
        memcpy(out, "i\xCC\x87", 3);
        return 3;
    }
    return (size_t)utf8proc_encode_char(utf8proc_tolower(code), (uint8_t *)out);
}

char *bpe_normalize(const char *text, size_t size, size_t *out_size, error *err) {
    uint8_t *composed = NULL;
    utf8proc_ssize_t length = 0;
    if (size > 0) length = utf8proc_map((const uint8_t *)text, (utf8proc_ssize_t)size, &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (length < 0) {
        error_set(err, "the text cannot be normalized: %s", utf8proc_errmsg(length));
        return NULL;
    }
    /* Lower case takes at most 3 bytes where the character took 2. */
    char *out = memory_new((size_t)length * 2 + 4, 1);
    size_t used = 0;
    for (utf8proc_ssize_t at = 0; at < length;) {
        utf8proc_int32_t code;
        utf8proc_ssize_t step = utf8proc_iterate(composed + at, length - at, &code);
        if (step < 1) break;
        used += put_lower(code, out + used);
        at += step;
    }
    free(composed);
    *out_size = used;
    return out;
}

typedef enum kind { KIND_NONE, KIND_SPACE, KIND_LETTER, KIND_DIGIT, KIND_OTHER } kind;

typedef struct range {
    int32_t first, last;
} range;

/* Unicode 15.1 to 16, which the reference knows and utf8proc 2.8 does not yet. */
static const range NEW_LETTERS[] = {{0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3}, {0x10D4A, 0x10D65},
                                    {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x11380, 0x113B5}, {0x113B7, 0x113B7}, {0x113D1, 0x113D1},
                                    {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0}, {0x13460, 0x143FA}, {0x16100, 0x1611D}, {0x16D40, 0x16D6C},
                                    {0x18CFF, 0x18CFF}, {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5F0}, {0x2EBF0, 0x2EE5D}};
static const range NEW_DIGITS[] = {{0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x16130, 0x16139},
                                   {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA}};

static bool is_within(int32_t code, const range *ranges, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (code >= ranges[i].first && code <= ranges[i].last) return true;
    return false;
}

/* \s, \p{L}, \p{N} and the rest. */
static kind kind_of(int32_t code) {
    if ((code >= 9 && code <= 13) || code == 0x85) return KIND_SPACE;
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return KIND_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return KIND_DIGIT;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return KIND_SPACE;
    case UTF8PROC_CATEGORY_CN:
        if (is_within(code, NEW_LETTERS, sizeof NEW_LETTERS / sizeof *NEW_LETTERS)) return KIND_LETTER;
        return is_within(code, NEW_DIGITS, sizeof NEW_DIGITS / sizeof *NEW_DIGITS) ? KIND_DIGIT : KIND_OTHER;
    default: return KIND_OTHER;
    }
}

static kind kind_at(const char *text, size_t size, size_t at, size_t *step) {
    if (at >= size) return KIND_NONE;
    utf8proc_int32_t code;
    utf8proc_ssize_t length = utf8proc_iterate((const uint8_t *)text + at, (utf8proc_ssize_t)(size - at), &code);
    *step = length < 1 ? 1 : (size_t)length;
    return length < 1 ? KIND_OTHER : kind_of(code);
}

static size_t contraction(const char *text, size_t size) {
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t length = strlen(endings[i]);
        if (length <= size && memcmp(text, endings[i], length) == 0) return length;
    }
    return 0;
}

size_t bpe_next_piece(const char *text, size_t size, size_t *start) {
    size_t step = 0;
    kind first;
    while ((first = kind_at(text, size, *start, &step)) == KIND_SPACE) *start += step;
    if (first == KIND_NONE) return 0;
    size_t length = contraction(text + *start, size - *start);
    if (length) return length;
    length = step;
    if (first == KIND_DIGIT) return length;
    while (kind_at(text, size, *start + length, &step) == first) length += step;
    return length;
}
