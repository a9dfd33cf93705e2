#include "text_encoder/tokenizer.h"

#include "base/memory.h"
#include "text_encoder/bpe_split.h"
#include "text_encoder/bpe_vocabulary.h"

#include <stdlib.h>
#include <string.h>

struct tokenizer {
    bpe_vocabulary vocabulary;
};

/* A pair of neighbours that may be merged: `at` is the left one, `joined` what they become. */
typedef struct pair {
    uint32_t rank;
    uint32_t at;
    int32_t joined;
} pair;

/* The ids so far, and room for the piece at work: a doubly linked list of symbols, and a heap of pairs, lowest rank and leftmost on top. */
typedef struct work {
    const bpe_vocabulary *vocabulary;
    int32_t *ids;
    size_t count, room;
    int32_t *symbols, *previous, *next; /* [piece_room]; symbol < 0: merged away; links -1: none */
    size_t piece_room;
    pair *heap;
    size_t heap_count;
} work;

static void put_id(work *w, int32_t id) {
    if (w->count == w->room) {
        w->room = w->room ? w->room * 2 : 64;
        w->ids = memory_grow(w->ids, w->room, sizeof *w->ids);
    }
    w->ids[w->count++] = id;
}

static bool pair_before(pair a, pair b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }

static void heap_push(work *w, pair item) {
    size_t at = w->heap_count++;
    for (; at > 0 && pair_before(item, w->heap[(at - 1) / 2]); at = (at - 1) / 2) w->heap[at] = w->heap[(at - 1) / 2];
    w->heap[at] = item;
}

static pair heap_pop(work *w) {
    pair top = w->heap[0], item = w->heap[--w->heap_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < w->heap_count; at = child) {
        if (child + 1 < w->heap_count && pair_before(w->heap[child + 1], w->heap[child])) child++;
        if (!pair_before(w->heap[child], item)) break;
        w->heap[at] = w->heap[child];
    }
    w->heap[at] = item;
    return top;
}

static void push_pair(work *w, int32_t at) {
    if (at < 0 || w->next[at] < 0) return;
    const bpe_merge *merge = bpe_vocabulary_merge(w->vocabulary, w->symbols[at], w->symbols[w->next[at]]);
    if (merge) heap_push(w, (pair){merge->rank, (uint32_t)at, merge->joined});
}

static void piece_reserve(work *w, size_t size) {
    if (size <= w->piece_room) return;
    w->piece_room = size < 256 ? 256 : size;
    w->symbols = memory_grow(w->symbols, w->piece_room, sizeof *w->symbols);
    w->previous = memory_grow(w->previous, w->piece_room, sizeof *w->previous);
    w->next = memory_grow(w->next, w->piece_room, sizeof *w->next);
    w->heap = memory_grow(w->heap, 3 * w->piece_room, sizeof *w->heap); /* a pair per symbol, two more per merge */
}

/* Byte-pair encoding (Sennrich et al. 2016) of one piece: [size] bytes, size > 0. A merge in the heap is stale when its symbols have
   changed since; it then no longer has the same result. */
static void encode_piece(work *w, const char *piece, size_t size) {
    piece_reserve(w, size);
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)piece[i];
        int32_t id = i + 1 < size ? w->vocabulary->byte_inside[byte] : w->vocabulary->byte_last[byte];
        w->symbols[i] = id < 0 ? w->vocabulary->unknown : id;
        w->previous[i] = (int32_t)i - 1;
        w->next[i] = i + 1 < size ? (int32_t)i + 1 : -1;
    }
    w->heap_count = 0;
    for (size_t i = 0; i < size; i++) push_pair(w, (int32_t)i);
    while (w->heap_count > 0) {
        pair top = heap_pop(w);
        int32_t at = (int32_t)top.at, right = w->next[at];
        if (w->symbols[at] < 0 || right < 0) continue;
        const bpe_merge *merge = bpe_vocabulary_merge(w->vocabulary, w->symbols[at], w->symbols[right]);
        if (!merge || merge->joined != top.joined) continue;
        w->symbols[at] = top.joined;
        w->symbols[right] = -1;
        w->next[at] = w->next[right];
        if (w->next[at] >= 0) w->previous[w->next[at]] = at;
        push_pair(w, w->previous[at]);
        push_pair(w, at);
    }
    for (int32_t at = 0; at >= 0; at = w->next[at]) put_id(w, w->symbols[at]);
}

/* Pieces of a normalized stretch between special tokens. The literal special tokens never reach this as one piece: what the splitting
   rule keeps whole, the byte-level rule after it divides into "<|", the word and "|>", which is what bpe_next_piece does at once. */
static void encode_pieces(work *w, const char *text, size_t size) {
    size_t start = 0, length;
    while ((length = bpe_next_piece(text, size, &start)) > 0) {
        encode_piece(w, text + start, length);
        start += length;
    }
}

/* The first special token in the text, the longest of those that start there; `*at` is set to its place. NULL: none. */
static const bpe_special *find_special(const bpe_vocabulary *vocabulary, bool normalized, const char *text, size_t size, size_t *at) {
    for (size_t i = 0; i < size; i++) {
        const bpe_special *best = NULL;
        for (size_t s = 0; s < vocabulary->special_count; s++) {
            const bpe_special *special = &vocabulary->specials[s];
            if (special->normalized != normalized || special->text[0] != text[i] || special->size > size - i) continue;
            if (memcmp(special->text, text + i, special->size) == 0 && (!best || special->size > best->size)) best = special;
        }
        if (best) {
            *at = i;
            return best;
        }
    }
    return NULL;
}

static bool encode_stretch(work *w, bool normalized, const char *text, size_t size, error *err);

/* Cuts the text at special tokens of one sort and hands on what lies between. */
static bool encode_around(work *w, bool normalized, const char *text, size_t size, error *err) {
    while (size > 0) {
        size_t at = size;
        const bpe_special *special = find_special(w->vocabulary, normalized, text, size, &at);
        if (at > 0 && !encode_stretch(w, normalized, text, at, err)) return false;
        if (!special) return true;
        put_id(w, special->id);
        text += at + special->size;
        size -= at + special->size;
    }
    return true;
}

static bool encode_stretch(work *w, bool normalized, const char *text, size_t size, error *err) {
    if (normalized) {
        encode_pieces(w, text, size);
        return true;
    }
    size_t lower_size = 0;
    char *lower = bpe_normalize(text, size, &lower_size, err);
    bool ok = lower && encode_around(w, true, lower, lower_size, err);
    free(lower);
    return ok;
}

bool tokenizer_encode(const tokenizer *tok, const char *text, size_t size, int32_t **ids, size_t *count, error *err) {
    *ids = NULL;
    *count = 0;
    size_t bad = bpe_utf8_check(text, size);
    if (bad < size) return error_set(err, "the text is not valid UTF-8 at byte %zu; save it as UTF-8", bad + 1);
    if (size > INT32_MAX / 4) return error_set(err, "the text is %zu bytes long, too long for a prompt", size);
    work w = {.vocabulary = &tok->vocabulary};
    bool ok = encode_around(&w, false, text, size, err);
    free(w.symbols);
    free(w.previous);
    free(w.next);
    free(w.heap);
    if (!ok) {
        free(w.ids);
        return false;
    }
    *ids = w.ids;
    *count = w.count;
    return true;
}

bool tokenizer_encode_77(const tokenizer *tok, const char *text, size_t size, int32_t ids[TOKENIZER_LENGTH], size_t *lost, error *err) {
    int32_t *all = NULL;
    size_t count = 0;
    if (!tokenizer_encode(tok, text, size, &all, &count, err)) return false;
    size_t held = count < TOKENIZER_CHUNK ? count : TOKENIZER_CHUNK;
    ids[0] = tok->vocabulary.start;
    for (size_t i = 0; i < held; i++) ids[1 + i] = all[i];
    ids[1 + held] = tok->vocabulary.end;
    for (size_t i = held + 2; i < TOKENIZER_LENGTH; i++) ids[i] = tok->vocabulary.pad;
    if (lost) *lost = count - held;
    free(all);
    return true;
}

static tokenizer *opened(bool ok, tokenizer *tok) {
    if (ok) return tok;
    free(tok);
    return NULL;
}

tokenizer *tokenizer_open_builtin(error *err) {
    tokenizer *tok = memory_new(1, sizeof *tok);
    return opened(bpe_vocabulary_builtin(&tok->vocabulary, err), tok);
}

tokenizer *tokenizer_open_folder(const char *folder, error *err) {
    tokenizer *tok = memory_new(1, sizeof *tok);
    return opened(bpe_vocabulary_folder(&tok->vocabulary, folder, err), tok);
}

void tokenizer_close(tokenizer *tok) {
    if (!tok) return;
    bpe_vocabulary_free(&tok->vocabulary);
    free(tok);
}

int32_t tokenizer_vocabulary(const tokenizer *tok) { return tok->vocabulary.count; }
int32_t tokenizer_start(const tokenizer *tok) { return tok->vocabulary.start; }
int32_t tokenizer_end(const tokenizer *tok) { return tok->vocabulary.end; }
int32_t tokenizer_pad(const tokenizer *tok) { return tok->vocabulary.pad; }
