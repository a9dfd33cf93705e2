/* The inner syntax of a prompt: brackets that weigh its parts. */
#include "diffusion/prompt.h"

#include "base/memory.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROUND_FACTOR 1.1

typedef struct piece {
    size_t from, length; /* in the text being parsed */
    double weight;
    bool is_break;
} piece;

typedef struct parser {
    const char *text;
    piece *pieces;
    size_t count, capacity;
    size_t *rounds, *squares; /* pieces before each open bracket */
    size_t round_count, square_count;
} parser;

static void add_piece(parser *p, size_t from, size_t length, bool is_break) {
    if (p->count == p->capacity) {
        p->capacity = 2 * p->capacity + 16;
        p->pieces = memory_grow(p->pieces, p->capacity, sizeof *p->pieces);
    }
    p->pieces[p->count++] = (piece){from, length, 1, is_break};
}

static void multiply_from(parser *p, size_t first, double factor) {
    for (size_t i = first; i < p->count; i++) p->pieces[i].weight *= factor;
}

static bool is_word(char c) { return isalnum((unsigned char)c) || c == '_' || (unsigned char)c >= 128; }

/* Plain text, cut at every BREAK and freed of the white space around it. */
static void add_plain(parser *p, size_t from, size_t length) {
    size_t start = from, end = from + length;
    for (size_t i = from; i + 5 <= end; i++) {
        bool found =
            memcmp(p->text + i, "BREAK", 5) == 0 && (i == from || !is_word(p->text[i - 1])) && (i + 5 == end || !is_word(p->text[i + 5]));
        if (!found) continue;
        size_t stop = i;
        while (stop > start && isspace((unsigned char)p->text[stop - 1])) stop--;
        add_piece(p, start, stop - start, false);
        add_piece(p, i, 0, true);
        start = i + 5;
        while (start < end && isspace((unsigned char)p->text[start])) start++;
        i = start - 1;
    }
    add_piece(p, start, end - start, false);
}

/* ":1.3)" at text, with white space allowed around the number: its length, else 0. */
static size_t weight_length(const char *text) {
    size_t i = 1 + strspn(text + 1, " \t\n\r"), digits;
    if (text[i] == '+' || text[i] == '-') i++;
    digits = strspn(text + i, ".0123456789");
    if (!digits) return 0;
    i += digits;
    i += strspn(text + i, " \t\n\r");
    return text[i] == ')' ? i + 1 : 0;
}

static bool close_with_weight(parser *p, const char *text, size_t length, error *err) {
    char *end;
    double weight = strtod(text + 1, &end);
    while (isspace((unsigned char)*end)) end++;
    if (end != text + length - 1 || !isfinite(weight))
        return error_set(err, "prompt: '%.*s' ends with no number; write (words:1.2)", (int)(length < 60 ? length : 60), text);
    multiply_from(p, p->rounds[--p->round_count], weight);
    return true;
}

/* Takes what stands at i; returns its length, 0 on error. */
static size_t parse_at(parser *p, size_t i, error *err) {
    char c = p->text[i];
    size_t weight = c == ':' ? weight_length(p->text + i) : 0;
    if (c == '\\') { /* a bracket or \ behind it is itself; alone it vanishes */
        bool escapes = p->text[i + 1] && strchr("()[]\\", p->text[i + 1]);
        if (escapes) add_piece(p, i + 1, 1, false);
        return escapes ? 2 : 1;
    }
    if (c == '(') {
        p->rounds[p->round_count++] = p->count;
    } else if (c == '[') {
        p->squares[p->square_count++] = p->count;
    } else if (weight && p->round_count) {
        return close_with_weight(p, p->text + i, weight, err) ? weight : 0;
    } else if (c == ')' && p->round_count) {
        multiply_from(p, p->rounds[--p->round_count], ROUND_FACTOR);
    } else if (c == ']' && p->square_count) {
        multiply_from(p, p->squares[--p->square_count], 1 / ROUND_FACTOR);
    } else {
        size_t length = strchr(")]:", c) ? 1 : strcspn(p->text + i, "\\()[]:");
        add_plain(p, i, length);
        return length;
    }
    return 1;
}

/* Neighbours of one weight become one fragment: the tokenizer should see words whole. */
static void merge_pieces(const parser *p, prompt_fragments *out) {
    out->items = memory_new(p->count ? p->count : 1, sizeof *out->items);
    for (size_t i = 0; i < p->count;) {
        size_t end = i + 1, length = p->pieces[i].length;
        while (!p->pieces[i].is_break && end < p->count && !p->pieces[end].is_break && p->pieces[end].weight == p->pieces[i].weight)
            length += p->pieces[end++].length;
        prompt_fragment *f = &out->items[out->count++];
        *f = (prompt_fragment){memory_new(length + 1, 1), (float)p->pieces[i].weight, p->pieces[i].is_break};
        for (size_t at = 0; i < end; at += p->pieces[i++].length) memcpy(f->text + at, p->text + p->pieces[i].from, p->pieces[i].length);
    }
    if (!p->count) out->items[out->count++] = (prompt_fragment){memory_string(""), 1, false};
}

bool prompt_fragments_parse(prompt_fragments *fragments, const char *text, error *err) {
    memset(fragments, 0, sizeof *fragments);
    size_t length = strlen(text), taken = 1;
    parser p = {.text = text, .rounds = memory_new(length + 1, sizeof(size_t)), .squares = memory_new(length + 1, sizeof(size_t))};
    for (size_t i = 0; i < length && taken; i += taken) taken = parse_at(&p, i, err);
    if (taken) {
        while (p.round_count) multiply_from(&p, p.rounds[--p.round_count], ROUND_FACTOR);
        while (p.square_count) multiply_from(&p, p.squares[--p.square_count], 1 / ROUND_FACTOR);
        merge_pieces(&p, fragments);
    }
    free(p.pieces);
    free(p.rounds);
    free(p.squares);
    return taken != 0;
}

void prompt_fragments_free(prompt_fragments *fragments) {
    for (int i = 0; i < fragments->count; i++) free(fragments->items[i].text);
    free(fragments->items);
    memset(fragments, 0, sizeof *fragments);
}

void prompt_emphasize(float *hidden, const float *weights, size_t width) {
    double before = 0, after = 0;
    bool plain = true;
    for (size_t t = 0; t < PROMPT_CHUNK; t++) {
        plain = plain && weights[t] == 1;
        for (size_t d = 0; d < width; d++) {
            before += (double)hidden[t * width + d];
            after += (double)(hidden[t * width + d] * weights[t]);
        }
    }
    if (plain) return;
    /* With all weights 0 there is no mean to restore. */
    float factor = after != 0 ? (float)(before / after) : 1;
    for (size_t t = 0; t < PROMPT_CHUNK; t++) {
        for (size_t d = 0; d < width; d++) hidden[t * width + d] *= weights[t] * factor;
    }
}
