/* What attention and its gradient share. Both work on blocks of ROWS tokens against OTHERS of the other side: a product gives the
   scores with one token per row, which after the softmax, rounded to bf16, are the left operand of the next product as they lie. */
#ifndef VULORA_CPU_BF16_ATTENTION_H
#define VULORA_CPU_BF16_ATTENTION_H

#include "cpu/bf16/bf16.h"

#include <math.h>

enum {
    ROWS = PANEL,       /* tokens of a block */
    OTHERS = 4 * PANEL, /* tokens of the other side at a time */
    OTHER_STEPS = OTHERS / STEP,
    VECTORS = OTHERS / 16 /* in a row of scores */
};

static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

/* 2^x, x <= 127; what would be less than 2^-126 is about that. A polynomial on [-1/2, 1/2] of least relative error, 7.5e-5: less
   than bf16's rounding. */
INLINE vec exp2_short(vec x) {
    const float round = 12582912; /* 1.5 * 2^23: behind its point there is no place */
    x = vec_max(x, vec_splat(-126));
    vec whole = x + round, part = x - (whole - round);
    vec p = ((vec_splat(0.05517167f) * part + 0.24261112f) * part + 0.69326099f) * part + 0.99992807f;
    return (vec)_mm512_add_epi32((__m512i)p, _mm512_slli_epi32((__m512i)whole, 23));
}

/* Tokens of one head of one image: row t at data + t * pitch. */
typedef struct tokens {
    const float *data;
    int64_t count, pitch, width;
} tokens;

INLINE tokens tokens_of(const cpu_attention *a, const float *x, int64_t count, int64_t image, int64_t head) {
    return (tokens){x + (image * count * a->heads + head) * a->width, count, a->heads * a->width, a->width};
}

INLINE int64_t width_steps(const cpu_attention *a) { return quotient_up(a->width, STEP); }
/* bf16 elements of a head's tokens as panels, either way: whole blocks of tokens, whole panels of width. */
INLINE int64_t packed_size(const cpu_attention *a, int64_t count) { return round_up(count, OTHERS) * width_steps(a) * STEP; }

/* OTHERS tokens from `first` on as columns: [panel of tokens][step of width]. */
INLINE void pack_columns(const tokens *x, int64_t first, bf16 *packed) {
    const bf16_right b = {x->data, DTYPE_F32, false, x->count, x->width, x->pitch};
    int64_t steps = quotient_up(x->width, STEP);
    bf16 *out = packed + first * steps * STEP;
    for (int64_t column = first; column < first + OTHERS; column += PANEL)
        for (int64_t s = 0; s < steps; s++, out += PANEL_STEP) {
            if (x->count - column < PANEL) memset(out, 0, PANEL_STEP * sizeof *out);
            if (column < x->count) bf16_panel(&b, s * STEP, column, out);
        }
}

/* The same tokens as what is summed over: [panel of width][step of tokens]. */
INLINE void pack_rows(const tokens *x, int64_t first, bf16 *packed) {
    const bf16_right b = {x->data, DTYPE_F32, true, x->width, x->count, x->pitch};
    int64_t panels = quotient_up(x->width, PANEL), steps = round_up(x->count, OTHERS) / STEP;
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t s = first / STEP; s < (first + OTHERS) / STEP; s++) {
            bf16 *out = packed + (panel * steps + s) * PANEL_STEP;
            if (s * STEP < x->count)
                bf16_panel(&b, s * STEP, panel * PANEL, out);
            else
                memset(out, 0, PANEL_STEP * sizeof *out);
        }
}

/* ROWS tokens from `first` on as a left operand: [step of width][ROWS][STEP], zeros behind the last. */
INLINE void pack_left(const tokens *x, int64_t first, bf16 *out) {
    for (int64_t k = 0; k < x->width; k += STEP)
        for (int64_t r = 0; r < ROWS; r++, out += STEP) {
            const float *row = x->data + (first + r) * x->pitch + k;
            _mm512_store_si512(out, first + r < x->count ? bf16_load_floats(row, least(x->width - k, STEP)) : _mm512_setzero_si512());
        }
}

/* scores [ROWS, OTHERS] = left [ROWS, width] columns^T for the OTHERS tokens from `first` on. offsets: 0, 1, 2 ... times ROWS * STEP. */
INLINE void score_block(int row_tiles, const bf16 *left, const int64_t *offsets, int64_t steps, const bf16 *columns, int64_t first,
                        float *scores) {
    for (int64_t j = 0; j < OTHERS; j += PANEL)
        bf16_block(row_tiles, 2, steps, left, offsets, columns + (first + j) * steps * STEP, PANEL_STEP, scores + j, OTHERS, false);
}

/* sums [ROWS, round_up(width, PANEL)] (+)= weights [ROWS, OTHERS] rows for the OTHERS tokens from `first` on; of `count` in all. */
INLINE void sum_block(int row_tiles, const bf16 *weights, const int64_t *offsets, const bf16 *rows, int64_t first, int64_t count,
                      int64_t width, float *sums, bool add) {
    int64_t panels = quotient_up(width, PANEL), steps = round_up(count, OTHERS) / STEP;
    int64_t here = least(quotient_up(count - first, STEP), OTHER_STEPS);
    for (int64_t panel = 0; panel < panels; panel++)
        bf16_block(row_tiles, width - panel * PANEL > SIDE ? 2 : 1, here, weights, offsets,
                   rows + (panel * steps + first / STEP) * PANEL_STEP, PANEL_STEP, sums + panel * PANEL, panels * PANEL, add);
}

/* Lanes [from, to) of LANES, clamped. */
INLINE __mmask16 lanes_between(int64_t from, int64_t to) {
    uint32_t below = to <= 0 ? 0 : to >= 16 ? 0xffffu : (1u << to) - 1, before = from <= 0 ? 0 : from >= 16 ? 0xffffu : (1u << from) - 1;
    return (__mmask16)(below & ~before);
}

#endif
