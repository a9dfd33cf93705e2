/* What attention's forward and backward pass share: exp2, copies of token rows into panels and back, and the inner loop of a product.

   Two forms of a block of tokens serve as operands of the register tile: rows (row_stride(width) floats a token, zeros behind the width),
   and panels, where LANES tokens lie side by side: element i of token t is at ((t / LANES) * width + i) * LANES + t % LANES. */
#ifndef VULORA_CPU_ISA_ATTENTION_H
#define VULORA_CPU_ISA_ATTENTION_H

#include "cpu/isa/vec.h"

#ifdef __AVX512F__
enum { MOST_VECTORS = 3 }; /* of a tile */
#else
enum { MOST_VECTORS = 2 };
#endif

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* An odd number of cache lines: rows of a power of two would share one set of the L1 cache. */
INLINE int64_t row_stride(int64_t width) { return ((width + 15) / 16 | 1) * 16; }

/* How many vectors wide the next tile is when `left` vectors remain: none is left alone where that can be helped. */
INLINE int next_vectors(int64_t left) { return (int)(left == 3 ? MOST_VECTORS : least(left, 2)); }

/* 2^x = 2^floor(x) * 2^f: minimax polynomial on 0 <= f < 1, relative error 7.5e-8 (1.5e-7 with its rounding). 0 for very small x and
   minus infinity. */
#define EXP2_POLYNOMIAL(f) \
    (((((vec_splat(0.0018775767f) * (f) + 0.00898934f) * (f) + 0.055826318f) * (f) + 0.24015361f) * (f) + 0.6931531f) * (f) + 0.99999994f)
INLINE vec vec_exp2(vec x) {
#ifdef __AVX512F__
    vec f = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return (vec)_mm512_scalef_ps((__m512)EXP2_POLYNOMIAL(f), (__m512)x);
#else
    __m256 whole = _mm256_floor_ps((__m256)x);
    vec f = x - (vec)whole;
    vec power = EXP2_POLYNOMIAL(f); /* the sum of bits wraps around where x is too small; those lanes become 0 */
    __m256i bits = _mm256_add_epi32((__m256i)power, _mm256_slli_epi32(_mm256_cvttps_epi32(whole), 23));
    return (vec)_mm256_and_ps((__m256)bits, _mm256_cmp_ps((__m256)x, _mm256_set1_ps(-126.0f), _CMP_GE_OQ));
#endif
}

/* The first n lanes; the others are zeros, and their memory is not touched. */
INLINE vec vec_load_first(const float *p, int64_t n) {
    if (n >= LANES) return vec_load(p);
#ifdef __AVX512F__
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    const vec_int lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (vec)_mm256_maskload_ps(p, (__m256i)(lane < (int32_t)n));
#endif
}
INLINE void vec_store_first(float *p, vec v, int64_t n) {
    if (n >= LANES) {
        vec_store(p, v);
        return;
    }
#ifdef __AVX512F__
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    const vec_int lane = {0, 1, 2, 3, 4, 5, 6, 7};
    _mm256_maskstore_ps(p, (__m256i)(lane < (int32_t)n), (__m256)v);
#endif
}

/* rows [count, row_stride(width)] <- source [count, width], `ld` floats apart. */
static inline void copy_rows(float *rows, const float *source, int64_t ld, int64_t count, int64_t width) {
    int64_t stride = row_stride(width);
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < width; i += LANES) vec_store(rows + t * stride + i, vec_load_first(source + t * ld + i, width - i));
}

/* Panels <- scale * source [count, width]; lanes behind the last token are zeros. */
static inline void copy_to_panels(float *panels, const float *source, int64_t ld, int64_t count, int64_t width, float scale) {
    for (int64_t t = 0; t < count; t += LANES)
        for (int64_t i = 0; i < width; i += LANES) {
            vec r[LANES];
            UNROLL for (int n = 0; n < LANES; n++) r[n] =
                t + n < count ? vec_load_first(source + (t + n) * ld + i, width - i) * scale : vec_splat(0);
            vec_transpose(r);
            for (int n = 0; n < LANES && i + n < width; n++) vec_store(panels + t * width + (i + n) * LANES, r[n]);
        }
}

/* target [count, width] <- factor * one panel; a factor for each of its tokens, count <= LANES. */
static inline void copy_from_panel(float *target, int64_t ld, const float *panel, int64_t count, int64_t width, vec factor) {
    for (int64_t i = 0; i < width; i += LANES) {
        vec r[LANES];
        UNROLL for (int n = 0; n < LANES; n++) r[n] = i + n < width ? vec_load(panel + (i + n) * LANES) * factor : vec_splat(0);
        vec_transpose(r);
        for (int n = 0; n < LANES && n < count; n++) vec_store_first(target + n * ld + i, r[n], width - i);
    }
}

/* sum [rows, vectors] += A [rows, k] B [k, vectors]. Element (i, at) of A is a[i * lda + at], in a transposed A a[at * lda + i]; vector j
   of row `at` of B begins at b + at * ldb + j * b_vector. */
INLINE void tile_sum(vec sum[TILE_ROWS][MOST_VECTORS], const int rows, const int vectors, const bool transposed, int64_t k, const float *a,
                     int64_t lda, const float *b, int64_t ldb, int64_t b_vector) {
    const float *p[TILE_ROWS];
    UNROLL for (int i = 0; i < rows; i++) p[i] = transposed ? a + i : a + i * lda;
#pragma GCC unroll 4
    for (int64_t at = 0; at < k; at++) {
        vec w[MOST_VECTORS];
        UNROLL for (int j = 0; j < vectors; j++) w[j] = vec_load(b + at * ldb + j * b_vector);
        UNROLL for (int i = 0; i < rows; i++) {
            vec x = vec_splat(transposed ? a[at * lda + i] : p[i][at]);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] += x * w[j];
        }
    }
}

#endif
