/* Matrix products, direct convolutions and gradients of weights of every instruction set this processor runs, against sums in double
   precision. Buffers have exactly their sizes, so that the sanitizer sees every access outside; scratch memory starts as NaN. */
#include "base/memory.h"
#include "base/random.h"
#include "cpu/cpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BIAS = 1, SHIFT = 2, RESIDUAL = 4, ALL = 7 };

/* height x width: the larger image of a convolution, which is the result of backward ones. */
typedef struct sample {
    int64_t images, height, width, k, n;
    int kernel, stride, pad; /* kernel 0: linear, height rows per image */
    dtype type;
    bool kn; /* of a convolution: backward */
    int terms;
} sample;

static const sample SAMPLES[] = {
    {1, 1, 0, 1, 1, 0, 0, 0, DTYPE_F32, false, 0},
    {1, 5, 0, 3, 5, 0, 0, 0, DTYPE_F16, false, ALL},
    {2, 4, 0, 3, 5, 0, 0, 0, DTYPE_BF16, true, ALL},
    {1, 1, 0, 1280, 70, 0, 0, 0, DTYPE_F16, false, BIAS},
    {1, 9, 0, 321, 33, 0, 0, 0, DTYPE_F16, false, BIAS | RESIDUAL},
    {1, 17, 0, 656, 47, 0, 0, 0, DTYPE_BF16, false, RESIDUAL},
    {1, 17, 0, 656, 47, 0, 0, 0, DTYPE_F16, true, RESIDUAL},
    {1, 1100, 0, 40, 4, 0, 0, 0, DTYPE_F32, false, 0},
    {1, 1100, 0, 4, 40, 0, 0, 0, DTYPE_F32, false, RESIDUAL},
    {1, 1100, 0, 16, 700, 0, 0, 0, DTYPE_F32, true, RESIDUAL},
    {3, 77, 0, 128, 96, 0, 0, 0, DTYPE_F16, true, ALL},
    {1, 9, 11, 3, 20, 3, 1, 1, DTYPE_F16, false, BIAS},
    {1, 9, 11, 20, 3, 3, 1, 1, DTYPE_F16, false, BIAS},
    {1, 9, 11, 20, 3, 3, 1, 1, DTYPE_F16, true, 0},
    {2, 6, 5, 40, 33, 3, 1, 1, DTYPE_F32, false, ALL},
    {3, 7, 6, 17, 35, 3, 2, 1, DTYPE_F16, false, ALL},
    {3, 4, 3, 17, 35, 3, 2, 1, DTYPE_F16, true, RESIDUAL},
    {2, 16, 16, 64, 32, 3, 2, 0, DTYPE_BF16, true, RESIDUAL},
    {1, 1, 1, 350, 20, 3, 1, 1, DTYPE_F16, false, ALL},
    {2, 1, 7, 340, 20, 3, 2, 1, DTYPE_F16, true, ALL},
    {3, 5, 7, 24, 20, 1, 2, 0, DTYPE_F16, false, ALL},
    {3, 5, 7, 24, 20, 1, 2, 0, DTYPE_F16, true, 0},
    {2, 40, 33, 18, 5, 3, 1, 1, DTYPE_F16, true, 0},
    {2, 8, 9, 5, 6, 5, 3, 2, DTYPE_F32, true, ALL},
};

typedef struct operands {
    float *a, *b, *bias, *shift, *residual; /* b: the values that `stored` has */
    void *stored;
} operands;

static float *noise_new(int64_t count, uint64_t stream) {
    float *x = memory_new((size_t)count, sizeof *x);
    for (int64_t i = 0; i < count; i++) x[i] = (float)(random_bits(1, stream, (uint64_t)i) >> 40) * 0x1p-23f - 1;
    return x;
}

/* What the kernel is asked for, with sizes; the addresses come with `operands`. */
static cpu_gemm product_of(const sample *s, cpu_gather *gather) {
    int64_t small_height = (s->height + 2 * s->pad - s->kernel) / (s->kernel ? s->stride : 1) + 1;
    int64_t small_width = (s->width + 2 * s->pad - s->kernel) / (s->kernel ? s->stride : 1) + 1;
    cpu_gemm g = {.k = s->k, .n = s->n, .lda = s->k, .b_type = s->type, .kn = s->kn, .scale = 0.75f, .taps = 1};
    g.rows_per_image = s->height;
    if (s->kernel) {
        *gather = s->kn ? (cpu_gather){s->height, s->width, small_height, small_width, s->kernel, s->stride, s->pad, true}
                        : (cpu_gather){small_height, small_width, s->height, s->width, s->kernel, s->stride, s->pad, false};
        g.gather = gather;
        g.taps = s->kernel * s->kernel;
        g.rows_per_image = gather->height * gather->width;
    }
    g.m = s->images * g.rows_per_image;
    return g;
}

static operands operands_new(const sample *s, const cpu_gemm *g) {
    int64_t weights = g->taps * g->k * g->n, rows = g->gather ? s->images * g->gather->source_height * g->gather->source_width : g->m;
    operands o = {.a = noise_new(rows * g->k, 1),
                  .b = noise_new(weights, 2),
                  .bias = s->terms & BIAS ? noise_new(g->n, 3) : NULL,
                  .shift = s->terms & SHIFT ? noise_new(s->images * g->n, 4) : NULL,
                  .residual = s->terms & RESIDUAL ? noise_new(g->m * g->n, 5) : NULL,
                  .stored = memory_new((size_t)weights, dtype_size(s->type))};
    dtype_from_f32(o.stored, s->type, o.b, (size_t)weights);
    dtype_to_f32(o.b, o.stored, s->type, (size_t)weights);
    return o;
}

static void operands_free(operands *o) { free(o->a), free(o->b), free(o->bias), free(o->shift), free(o->residual), free(o->stored); }

/* Index of the row of A that row p of the result sees through a tap, or -1. */
static int64_t row_seen(const cpu_gemm *g, int64_t p, int tap) {
    const cpu_gather *s = g->gather;
    if (!s) return p;
    int64_t image = p / (s->height * s->width), y = p / s->width % s->height, x = p % s->width;
    if (s->backward) {
        y += s->pad - tap / s->kernel, x += s->pad - tap % s->kernel;
        if (y % s->stride || x % s->stride) return -1;
        y /= s->stride, x /= s->stride;
    } else {
        y = y * s->stride + tap / s->kernel - s->pad, x = x * s->stride + tap % s->kernel - s->pad;
    }
    if (y < 0 || x < 0 || y >= s->source_height || x >= s->source_width) return -1;
    return (image * s->source_height + y) * s->source_width + x;
}

static double expect(const cpu_gemm *g, const operands *o, int64_t p, int64_t j) {
    double sum = 0;
    for (int tap = 0; tap < g->taps; tap++) {
        int64_t row = row_seen(g, p, tap);
        const float *b = o->b + tap * g->k * g->n;
        for (int64_t k = 0; row >= 0 && k < g->k; k++)
            sum += (double)o->a[row * g->k + k] * (double)(g->kn ? b[k * g->n + j] : b[j * g->k + k]);
    }
    sum *= (double)g->scale;
    if (o->bias) sum += (double)o->bias[j];
    if (o->shift) sum += (double)o->shift[p / g->rows_per_image * g->n + j];
    if (o->residual) sum += (double)o->residual[p * g->n + j];
    return sum;
}

static void product_run(const cpu_kernels *kernels, cpu_gemm g, const operands *o, int threads, bool in_place, float *c) {
    g.a = o->a, g.b = o->stored, g.bias = o->bias, g.shift = o->shift, g.residual = o->residual, g.c = c;
    if (in_place && o->residual) {
        memcpy(c, o->residual, (size_t)(g.m * g.n) * sizeof *c);
        g.residual = c;
    }
    size_t bytes = kernels->gemm_scratch(&g, threads);
    float *scratch = memory_try_aligned(bytes);
    assert_non_null(scratch);
    for (size_t i = 0; i < bytes / sizeof *scratch; i++) scratch[i] = NAN;
    kernels->gemm(&g, threads, scratch);
    free(scratch);
}

static void sample_check(const sample *s) {
    cpu_gather gather;
    cpu_gemm g = product_of(s, &gather);
    operands o = operands_new(s, &g);
    size_t count = (size_t)(g.m * g.n);
    float *c = memory_new(count, sizeof *c), *other = memory_new(count, sizeof *c);
    double *expected = memory_new(count, sizeof *expected);
    for (int64_t i = 0; i < g.m * g.n; i++) expected[i] = expect(&g, &o, i / g.n, i % g.n);
    for (int i = 0; cpu_kernels_at(i); i++) {
        double wrong = 0, all = 0;
        product_run(cpu_kernels_at(i), g, &o, 1, false, c);
        for (size_t e = 0; e < count; e++) {
            wrong += pow((double)c[e] - expected[e], 2);
            all += pow(expected[e], 2);
        }
        if (!(sqrt(wrong / all) <= 1e-6))
            fail_msg("%s, sample %d: error %g", cpu_kernels_at(i)->name, (int)(s - SAMPLES), sqrt(wrong / all));
        product_run(cpu_kernels_at(i), g, &o, 5, true, other);
        assert_memory_equal(c, other, count * sizeof *c);
    }
    free(c), free(other), free(expected);
    operands_free(&o);
}

static void test_products(void **unused) {
    (void)unused;
    for (size_t i = 0; i < sizeof SAMPLES / sizeof *SAMPLES; i++) sample_check(&SAMPLES[i]);
}

/* ---- gradients of weights ---- */

static double weight_expect(const cpu_gemm *g, const float *dy, const float *x, int tap, int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t p = 0; p < g->m; p++) {
        int64_t row = row_seen(g, p, tap);
        if (row >= 0) sum += (double)dy[p * g->n + i] * (double)x[row * g->k + j];
    }
    return sum * (double)g->scale;
}

static void weight_run(const cpu_kernels *kernels, const cpu_gemm *g, const float *dy, const float *x, int threads, float *dw) {
    cpu_weight_grad w = {
        .rows = g->m, .outputs = g->n, .inputs = g->k, .taps = g->taps, .gather = g->gather, .dy = dy, .x = x, .dw = dw, .scale = g->scale};
    size_t bytes = kernels->weight_grad_scratch(&w, threads);
    float *scratch = memory_try_aligned(bytes), *before = noise_new(g->taps * g->n * g->k, 6);
    assert_non_null(scratch);
    for (size_t i = 0; i < bytes / sizeof *scratch; i++) scratch[i] = NAN;
    memcpy(dw, before, (size_t)(g->taps * g->n * g->k) * sizeof *dw);
    kernels->weight_grad(&w, threads, scratch);
    free(scratch), free(before);
}

static void weight_check(const sample *s) {
    cpu_gather gather;
    cpu_gemm g = product_of(s, &gather);
    operands o = operands_new(s, &g);
    size_t count = (size_t)(g.taps * g.n * g.k);
    float *dy = noise_new(g.m * g.n, 7), *before = noise_new((int64_t)count, 6);
    float *dw = memory_new(count, sizeof *dw), *other = memory_new(count, sizeof *dw);
    double *expected = memory_new(count, sizeof *expected);
    for (int64_t i = 0; i < g.taps * g.n * g.k; i++)
        expected[i] = (double)before[i] + weight_expect(&g, dy, o.a, (int)(i / (g.n * g.k)), i / g.k % g.n, i % g.k);
    for (int i = 0; cpu_kernels_at(i); i++) {
        double wrong = 0, all = 0;
        weight_run(cpu_kernels_at(i), &g, dy, o.a, 1, dw);
        for (size_t e = 0; e < count; e++) {
            wrong += pow((double)dw[e] - expected[e], 2);
            all += pow(expected[e], 2);
        }
        if (!(sqrt(wrong / all) <= 1e-6))
            fail_msg("%s, weight gradient of sample %d: error %g", cpu_kernels_at(i)->name, (int)(s - SAMPLES), sqrt(wrong / all));
        weight_run(cpu_kernels_at(i), &g, dy, o.a, 5, other);
        assert_memory_equal(dw, other, count * sizeof *dw);
    }
    free(dy), free(before), free(dw), free(other), free(expected);
    operands_free(&o);
}

static void test_weight_gradients(void **unused) {
    (void)unused;
    for (size_t i = 0; i < sizeof SAMPLES / sizeof *SAMPLES; i++)
        if (!SAMPLES[i].kernel || !SAMPLES[i].kn) weight_check(&SAMPLES[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products), cmocka_unit_test(test_weight_gradients)};
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
