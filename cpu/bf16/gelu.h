/* The gate of the feed-forward layers: gelu(x) = x / 2 (1 + erf(x / sqrt 2)). */
#ifndef VULORA_CPU_BF16_GELU_H
#define VULORA_CPU_BF16_GELU_H

#include "cpu/bf16/bf16.h"

/* 1 / x, relative error 1e-7. */
INLINE vec vec_inverse(vec x) {
    vec near = (vec)_mm512_rcp14_ps((__m512)x);
    return near * (2 - x * near);
}

/* 2^x = 2^floor(x) 2^f, a polynomial on 0 <= f < 1 of least relative error, 7.5e-8. */
INLINE vec vec_exp2(vec x) {
    vec f = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vec p = vec_splat(0.0018775767f) * f + 0.00898934f;
    p = (((p * f + 0.055826318f) * f + 0.24015361f) * f + 0.6931531f) * f + 0.99999994f;
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
}

/* erf by Abramowitz & Stegun 7.1.26: absolute error below 2e-7. */
INLINE vec vec_gelu(vec x) {
    vec a = (vec)_mm512_abs_ps((__m512)(x * 0.70710678f)), t = vec_inverse(1 + a * 0.3275911f);
    vec p = ((((vec_splat(1.061405429f) * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    vec tail = p * vec_exp2(a * a * -1.44269504f) * 0.5f; /* what is missing from 1, of the two sides one */
    __mmask16 negative = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return x * (vec)_mm512_mask_mov_ps((__m512)(1 - tail), negative, (__m512)tail);
}

#endif
