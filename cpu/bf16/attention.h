/* What attention and its gradient share. Both work on blocks of ROWS tokens against OTHERS of the other side: a product gives the
   scores with one token per row, which after the softmax, rounded to bf16, are the left operand of the next product as they lie. */
#ifndef VULORA_CPU_BF16_ATTENTION_H
#define VULORA_CPU_BF16_ATTENTION_H

#include "cpu/bf16/bf16.h"

#include <math.h>

enum {
    ROWS = PANEL,       /* tokens of a block */
    OTHERS = 2 * PANEL, /* tokens of the other side at a time: what belongs to them stays in the L1 cache */
    OTHER_STEPS = OTHERS / STEP,
    VECTORS = OTHERS / 16 /* in a row of scores */
};

static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

/* 2^x = 2^floor(x) 2^f, a polynomial on 0 <= f < 1 of least relative error, 7.5e-5: less than bf16's rounding. */
INLINE vec exp2_short(vec x) {
    vec f = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vec p = ((vec_splat(0.07802452f) * f + 0.22606715f) * f + 0.69583355f) * f + 0.99992521f;
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
}

/* Tokens of one head of one image: row t at element t * pitch. */
typedef struct tokens {
    const void *data;
    dtype type;
    int64_t count, pitch, width;
} tokens;

INLINE tokens tokens_of(const cpu_attention *a, const void *x, dtype type, int64_t count, int64_t image, int64_t head) {
    size_t first = (size_t)((image * count * a->heads + head) * a->width) * dtype_size(type);
    return (tokens){(const char *)x + first, type, count, a->heads * a->width, a->width};
}

INLINE int64_t width_steps(const cpu_attention *a) { return quotient_up(a->width, STEP); }
/* bf16 elements of a head's tokens as panels, either way: whole blocks of tokens, whole panels of width. */
INLINE int64_t packed_size(const cpu_attention *a, int64_t count) { return round_up(count, OTHERS) * width_steps(a) * STEP; }

/* OTHERS tokens from `first` on as columns: [panel of tokens][step of width]. */
INLINE void pack_columns(const tokens *x, int64_t first, bf16 *packed) {
    const bf16_right b = {x->data, x->type, false, x->count, x->width, x->pitch};
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
    const bf16_right b = {x->data, x->type, true, x->width, x->count, x->pitch};
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
            int64_t at = (first + r) * x->pitch + k;
            _mm512_store_si512(out,
                               first + r < x->count ? bf16_load(x->data, x->type, at, least(x->width - k, STEP)) : _mm512_setzero_si512());
        }
}

/* scores [ROWS, OTHERS] = left [ROWS, width] columns^T for the OTHERS tokens from `first` on. aside: or NULL. */
INLINE void score_block(int row_tiles, const bf16_left *left, int64_t steps, const bf16 *columns, int64_t first, float *scores,
                        const bf16_aside *aside) {
    bf16_panels(row_tiles, OTHERS / PANEL, steps, left, columns + first * steps * STEP, scores, OTHERS, aside);
}

/* sums [ROWS, round_up(width, PANEL)] (+)= weights [ROWS, OTHERS] rows for the OTHERS tokens from `first` on; of `count` in all. */
INLINE void sum_block(int row_tiles, const bf16_left *weights, const bf16 *rows, int64_t first, int64_t count, int64_t width, float *sums,
                      bool add, const bf16_aside *aside) {
    int64_t panels = quotient_up(width, PANEL), steps = round_up(count, OTHERS) / STEP;
    int64_t here = least(quotient_up(count - first, STEP), OTHER_STEPS);
    for (int64_t panel = 0; panel < panels; panel++) {
        const bf16_aside part = bf16_aside_part(aside, panel, panels);
        bf16_block(row_tiles, width - panel * PANEL > SIDE ? 2 : 1, here, weights, rows + (panel * steps + first / STEP) * PANEL_STEP,
                   PANEL_STEP, sums + panel * PANEL, panels * PANEL, add, &part);
    }
}

/* Lanes [from, to) of LANES, clamped. */
INLINE __mmask16 lanes_between(int64_t from, int64_t to) {
    uint32_t below = to <= 0 ? 0 : to >= 16 ? 0xffffu : (1u << to) - 1, before = from <= 0 ? 0 : from >= 16 ? 0xffffu : (1u << from) - 1;
    return (__mmask16)(below & ~before);
}

#endif
