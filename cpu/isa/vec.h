/* Vectors of LANES floats through GCC's vector extensions: the same source compiles for AVX-512 and AVX2. The files of this folder are
   built once for each instruction set; CPU_NAMED(x) is x with the set's name behind it. */
#ifndef VULORA_CPU_ISA_VEC_H
#define VULORA_CPU_ISA_VEC_H

#include "cpu/cpu.h"

#include <immintrin.h>
#include <string.h>

#define CPU_PASTE_(a, b) a##_##b
#define CPU_PASTE(a, b) CPU_PASTE_(a, b)
#define CPU_NAMED(x) CPU_PASTE(x, CPU_ISA)
#define CPU_TEXT_(x) #x
#define CPU_TEXT(x) CPU_TEXT_(x)

#ifdef __AVX512F__
enum { LANES = 16, TILE_ROWS = 8 }; /* 8 rows x 2 vectors of accumulators, 32 registers */
#else
enum { LANES = 8, TILE_ROWS = 6 }; /* 6 rows x 2 vectors, 16 registers */
#endif
enum { TILE_VECTORS = 2, TILE_COLUMNS = TILE_VECTORS * LANES };

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float vec_loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t vec_int __attribute__((vector_size(LANES * 4)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE vec vec_load(const float *p) { return *(const vec_loose *)p; }
INLINE void vec_store(float *p, vec v) { *(vec_loose *)p = v; }

#ifdef __AVX512F__
INLINE vec vec_splat(float x) { return (vec)_mm512_set1_ps(x); }
INLINE vec vec_load_half(const uint16_t *p) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vec vec_load_bfloat(const uint16_t *p) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
INLINE vec vec_max(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#else
INLINE vec vec_splat(float x) { return (vec)_mm256_set1_ps(x); }
INLINE vec vec_load_half(const uint16_t *p) { return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vec vec_load_bfloat(const uint16_t *p) {
    return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
INLINE vec vec_max(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#endif

/* LANES stored elements from index i on. */
INLINE vec vec_load_as(const void *p, dtype type, int64_t i) {
    if (type == DTYPE_F16) return vec_load_half((const uint16_t *)p + i);
    if (type == DTYPE_BF16) return vec_load_bfloat((const uint16_t *)p + i);
    return vec_load((const float *)p + i);
}

/* The first count < LANES of them, zeros behind. */
INLINE vec vec_load_part(const void *p, dtype type, int64_t i, int count) {
    float part[LANES] = {0};
    size_t size = type == DTYPE_F32 ? 4 : 2;
    memcpy(part, (const char *)p + (size_t)i * size, (size_t)count * size);
    return vec_load_as(part, type, 0);
}

/* One butterfly stage of a transpose: pairs of rows `step` apart exchange halves of each 2 * step lanes. */
#define VEC_EXCHANGE(r, step, low, high) \
    UNROLL for (int i_ = 0; i_ < LANES; i_++) { \
        if (i_ & (step)) continue; \
        vec a_ = (r)[i_], b_ = (r)[i_ + (step)]; \
        (r)[i_] = __builtin_shuffle(a_, b_, (low)); \
        (r)[i_ + (step)] = __builtin_shuffle(a_, b_, (high)); \
    }

/* LANES x LANES block, in registers. */
INLINE void vec_transpose(vec r[LANES]) {
#ifdef __AVX512F__
    static const vec_int low8 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
    static const vec_int high8 = {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
    static const vec_int low4 = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
    static const vec_int high4 = {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
    static const vec_int low2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
    static const vec_int high2 = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
    static const vec_int low1 = {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30};
    static const vec_int high1 = {1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31};
    VEC_EXCHANGE(r, 8, low8, high8)
#else
    static const vec_int low4 = {0, 1, 2, 3, 8, 9, 10, 11}, high4 = {4, 5, 6, 7, 12, 13, 14, 15};
    static const vec_int low2 = {0, 1, 8, 9, 4, 5, 12, 13}, high2 = {2, 3, 10, 11, 6, 7, 14, 15};
    static const vec_int low1 = {0, 8, 2, 10, 4, 12, 6, 14}, high1 = {1, 9, 3, 11, 5, 13, 7, 15};
#endif
    VEC_EXCHANGE(r, 4, low4, high4)
    VEC_EXCHANGE(r, 2, low2, high2)
    VEC_EXCHANGE(r, 1, low1, high1)
}

/* What the other files of this folder hold, by instruction set. */
#define isa_tile_run CPU_NAMED(cpu_tile_run)
/* c [rows, vectors * LANES] (+)= a [rows, k] b [k, vectors * LANES]; rows <= TILE_ROWS given by pointers, vectors 1..3 (AVX2: 1..2). */
void isa_tile_run(int rows, int vectors, int64_t k, const float *const *a, const float *b, int64_t ldb, float *c, int64_t ldc, bool add);

#define isa_tile_columns_run CPU_NAMED(cpu_tile_columns_run)
/* The same with the left operand [k, rows], lda from row to row. */
void isa_tile_columns_run(int rows, int vectors, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc,
                          bool add);

#define isa_gemm_scratch CPU_NAMED(cpu_gemm_scratch)
#define isa_gemm_run CPU_NAMED(cpu_gemm_run)
size_t isa_gemm_scratch(const cpu_gemm *g, int threads);
void isa_gemm_run(const cpu_gemm *g, int threads, void *scratch);

#define isa_weight_grad_scratch CPU_NAMED(cpu_weight_grad_scratch)
#define isa_weight_grad_run CPU_NAMED(cpu_weight_grad_run)
size_t isa_weight_grad_scratch(const cpu_weight_grad *g, int threads);
void isa_weight_grad_run(const cpu_weight_grad *g, int threads, void *scratch);

#define isa_winograd_serves CPU_NAMED(cpu_winograd_serves)
#define isa_winograd_scratch CPU_NAMED(cpu_winograd_scratch)
#define isa_winograd_run CPU_NAMED(cpu_winograd_run)
bool isa_winograd_serves(const cpu_gemm *g);
size_t isa_winograd_scratch(const cpu_gemm *g, int threads);
void isa_winograd_run(const cpu_gemm *g, int threads, void *scratch);

#define isa_attention_scratch CPU_NAMED(cpu_attention_scratch)
#define isa_attention_run CPU_NAMED(cpu_attention_run)
#define isa_attention_grad_scratch CPU_NAMED(cpu_attention_grad_scratch)
#define isa_attention_grad_run CPU_NAMED(cpu_attention_grad_run)
size_t isa_attention_scratch(const cpu_attention *a, int threads);
void isa_attention_run(const cpu_attention *a, int threads, void *scratch);
size_t isa_attention_grad_scratch(const cpu_attention *a, int threads);
void isa_attention_grad_run(const cpu_attention *a, int threads, void *scratch);

#endif
