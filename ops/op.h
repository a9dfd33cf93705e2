/* What the op files share: checks, gradient sums, and the CPU kernels' building blocks. */
#ifndef VULORA_OPS_OP_H
#define VULORA_OPS_OP_H

#include "ops/ops.h"

/* Elements below which waking threads costs more than they save. */
enum { OP_SMALL = 1 << 16 };

/* Adds g to the gradient of x, with an op when there is one already or x is a parameter. Nothing happens where x needs no gradient. */
void grad_add(tape *t, tensor *x, tensor *g);

/* Where a rule sums up the gradient of a weight, always fp32: a parameter's own gradient, which is added to (*accumulate), or a new
   temporary for a weight that is computed. Then grad_sum_done(t, w, the tensor). */
tensor *grad_sum_begin(tape *t, tensor *w, bool *accumulate);
void grad_sum_done(tape *t, tensor *w, tensor *sum);

/* to += g, to a parameter's gradient. */
void op_add_into(tape *t, tensor *to, tensor *g);
/* Sum of everything: fp32 [1]. */
tensor *op_total(tape *t, tensor *x);
/* Adds to the gradient of w, one value per column, factor times the sum over rows of x y (y NULL: of x). */
void grad_add_columns(tape *t, tensor *w, tensor *x, tensor *y, float factor);

/* matmul.c. scale a^T b of two fp32 matrices [n, r] (columns), or the sum over taps of scale a b^T of two [r, n] or [taps, r, n]: [r, r].
   No gradient; that of op_factor_gram, x with itself, takes the result's gradient to be symmetric. */
tensor *op_gram_of_two(tape *t, tensor *a, tensor *b, bool columns, float scale);
tensor *op_factor_gram(tape *t, tensor *x, bool columns);

/* Loops that the compiler vectorizes are built for several instruction sets and chosen at load time. Sanitizers cannot start such programs.
 */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define OP_HOT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define OP_HOT
#endif

/* e^x, relative error below 2e-7; 0 below -87, 3e38 above 88. Written so that loops over it vectorize. */
static inline float scalar_exp(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = x * 1.44269504f + 12582912.0f; /* round to nearest by the magic number 1.5 * 2^23 */
    union {
        float f;
        uint32_t i; /* unsigned: NaN wraps around and stays NaN by p */
    } bits = {.f = n}, power;
    n -= 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    power.i = (bits.i - 0x4b400000u + 127u) << 23;
    return p * power.f;
}

static inline float scalar_sigmoid(float x) { return 1.0f / (1.0f + scalar_exp(-x)); }

/* Abramowitz & Stegun 7.1.26: absolute error below 1.5e-7. */
static inline float scalar_erf(float x) {
    float a = x < 0 ? -x : x, t = 1.0f / (1.0f + 0.3275911f * a);
    float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    float e = 1.0f - p * scalar_exp(-a * a);
    return x < 0 ? -e : e;
}

static inline float scalar_gelu(float x) { return 0.5f * x * (1.0f + scalar_erf(x * 0.70710678f)); }
/* d gelu(x) / dx = Phi(x) + x phi(x) */
static inline float scalar_gelu_slope(float x) {
    return 0.5f * (1.0f + scalar_erf(x * 0.70710678f)) + x * 0.39894228f * scalar_exp(-0.5f * x * x);
}

/* Row-major C = alpha op(A) op(B) + beta C through BLAS. */
void blas_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* Converts n elements with all threads. */
void cpu_expand(float *out, const void *in, dtype type, int64_t n);
void cpu_copy(float *out, const float *in, int64_t n);

/* Whether own kernels (cpu/cpu.h) can multiply by a tensor as it is stored. */
static inline bool cpu_kernels_read(const tensor *x) { return x->type == DTYPE_F32 || x->type == DTYPE_F16 || x->type == DTYPE_BF16; }

/* Rounds to bf16, to nearest even; tiny values as the processor's own conversion, which products see as zeros either way. */
static inline uint16_t scalar_bfloat(float x) {
    union {
        float f;
        uint32_t i;
    } bits = {.f = x};
    uint32_t rounded = (bits.i + 0x7fffu + (bits.i >> 16 & 1u)) >> 16;
    return (uint16_t)(x != x ? 0x7fffu : rounded);
}

/* The result can be stored in bf16, what is read cannot: for ops that compute element by element (their `narrow`). */
narrowing narrow_result(const record *r, const device *d);

/* Address of element `index` of a stored constant. */
static inline const void *cpu_at(const tensor *x, int64_t index) { return (const char *)x->cpu + (size_t)index * dtype_size(x->type); }

#endif
