/* Right operands - weights, keys, values - from how they are stored to a panel's pairs of bf16. */
#include "cpu/bf16/bf16.h"

/* STEP stored elements, of which `count` are there, as bf16. */
INLINE __m512i load_step(const bf16_right *b, const dtype type, int64_t at, int64_t count) {
    __m512i stored = bf16_load(b->data, type == DTYPE_F16 ? DTYPE_BF16 : type, at, count);
    if (type != DTYPE_F16) return stored;
    return bf16_join((vec)_mm512_cvtph_ps(_mm512_castsi512_si256(stored)), (vec)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(stored, 1)));
}

/* B [n][k]: SIDE rows of it, transposed as pairs. */
INLINE void tile_from_columns(const bf16_right *b, const dtype type, int64_t at, int64_t depth, int64_t columns, bf16 *out) {
    vec block[SIDE];
    if (depth == STEP && columns >= SIDE) {
        UNROLL for (int i = 0; i < SIDE; i++) block[i] = (vec)load_step(b, type, at + i * b->pitch, STEP);
    } else {
        for (int i = 0; i < SIDE; i++) block[i] = i < columns ? (vec)load_step(b, type, at + i * b->pitch, depth) : vec_splat(0);
    }
    vec_transpose(block);
    UNROLL for (int i = 0; i < SIDE; i++) _mm512_storeu_si512(out + i * 2 * SIDE, (__m512i)block[i]);
}

INLINE vec load_side(const bf16_right *b, const dtype type, int64_t at, int64_t count) {
    return count >= SIDE ? vec_load_as(b->data, type, at) : vec_load_part(b->data, type, at, (int)count);
}

/* B [k][n]: two rows of it are a row of pairs. */
INLINE void tile_from_rows(const bf16_right *b, const dtype type, int64_t at, int64_t depth, int64_t columns, bf16 *out) {
    for (int64_t k = 0; k < STEP; k += 2, out += 2 * SIDE, at += 2 * b->pitch) {
        vec low = k < depth ? load_side(b, type, at, columns) : vec_splat(0);
        vec high = k + 1 < depth ? load_side(b, type, at + b->pitch, columns) : vec_splat(0);
        _mm512_storeu_si512(out, bf16_pairs(low, high));
    }
}

INLINE void panel_as(const bf16_right *b, const dtype type, int64_t k, int64_t column, bf16 *out) {
    int64_t depth = least(b->k - k, STEP), columns = least(b->n - column, PANEL);
    for (int64_t j = 0; j < columns; j += SIDE, out += TILE_SIZE) {
        if (b->kn)
            tile_from_rows(b, type, k * b->pitch + column + j, depth, columns - j, out);
        else
            tile_from_columns(b, type, (column + j) * b->pitch + k, depth, columns - j, out);
    }
}

void bf16_panel(const bf16_right *b, int64_t k, int64_t column, bf16 *out) {
    switch (b->type) {
    case DTYPE_F16: panel_as(b, DTYPE_F16, k, column, out); return;
    case DTYPE_BF16: panel_as(b, DTYPE_BF16, k, column, out); return;
    default: panel_as(b, DTYPE_F32, k, column, out); return;
    }
}
