/* The matrix product kernels, each in every tiling, against loops: those too that the device at hand would not choose.
   VULORA_TEST_GPU names another device to test. */
#include "base/memory.h"
#include "graph/device.h"
#include "ops/kernel.h"
#include "tests/support/validation.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A convolution of [images, h, w, in] or, with kernel 0, a linear layer of h rows. backward: the gradient of its input. */
typedef struct product {
    int64_t images, h, w, in, out;
    int kernel, stride, pad_before, pad_after;
    bool backward;
    bool bias, shift, residual;
    float scale;
    int splits;
} product;

static const product products[] = {
    {1, 70, 1, 64, 52, .bias = true, .residual = true, .scale = 0.5f, .splits = 1},
    {1, 200, 1, 96, 136, .scale = 1, .splits = 1},
    {1, 33, 1, 640, 72, .bias = true, .residual = true, .scale = 2, .splits = 3},
    {1, 130, 1, 136, 64, .backward = true, .residual = true, .scale = 1, .splits = 1},
    {1, 65, 1, 72, 160, .backward = true, .scale = 0.25f, .splits = 2},
    {2, 7, 9, 32, 20, 3, 1, 1, 1, .bias = true, .shift = true, .residual = true, .scale = 1, .splits = 1},
    {1, 16, 12, 64, 132, 3, 1, 1, 1, .bias = true, .shift = true, .scale = 1, .splits = 4},
    {3, 9, 8, 32, 12, 3, 2, 1, 1, .bias = true, .scale = 1, .splits = 1},
    {1, 8, 10, 32, 24, 3, 2, 0, 1, .scale = 1, .splits = 1},
    {2, 7, 9, 24, 32, 3, 1, 1, 1, .backward = true, .residual = true, .scale = 1, .splits = 1},
    {2, 9, 8, 16, 64, 3, 2, 1, 1, .backward = true, .scale = 1, .splits = 1},
    {1, 8, 10, 40, 32, 3, 2, 0, 1, .backward = true, .scale = 1, .splits = 3},
};

/* Multiples of 1/64 between -1 and 1: exact in half floats, so that only sums and results round. */
static float *values_new(int64_t n, uint32_t seed) {
    float *v = memory_new((size_t)n, sizeof *v);
    uint32_t x = seed * 2654435761u + 1u;
    for (int64_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        v[i] = (float)((int)(x >> 25) - 64) / 64.0f;
    }
    return v;
}

static int64_t out_size(int64_t in, const product *p) { return (in + p->pad_before + p->pad_after - p->kernel) / p->stride + 1; }

/* The product as the ops describe it, without its tensors. */
static gemm_call call_of(const product *p) {
    bool conv = p->kernel > 0;
    int64_t oh = conv ? out_size(p->h, p) : p->h, ow = conv ? out_size(p->w, p) : p->w;
    int64_t inside = p->images * p->h * p->w, outside = p->images * oh * ow;
    gemm_call g = {.taps = conv ? p->kernel * p->kernel : 1,
                   .tap_b = p->in * p->out,
                   .ldb = p->in,
                   .kernel = p->kernel,
                   .stride = p->stride,
                   .pad = p->pad_before,
                   .scale = p->scale};
    g.m = p->backward ? inside : outside, g.n = p->backward ? p->in : p->out, g.k = g.lda = p->backward ? p->out : p->in;
    g.height = p->backward ? p->h : oh, g.width = p->backward ? p->w : ow;
    g.source_height = p->backward ? oh : p->h, g.source_width = p->backward ? ow : p->w;
    g.rows_per_image = g.height * g.width;
    g.a_mode = !conv ? GEMM_A_ROWS : p->backward ? GEMM_A_BACKWARD : GEMM_A_FORWARD;
    g.b_mode = p->backward ? GEMM_B_KN : GEMM_B_NK;
    return g;
}

/* The row of A that tap t of row m reads, or -1. */
static int64_t source_row(const gemm_call *g, int64_t m, int64_t t) {
    if (g->a_mode == GEMM_A_ROWS) return m;
    int64_t image = m / (g->height * g->width), y = m / g->width % g->height, x = m % g->width, ky = t / g->kernel, kx = t % g->kernel;
    if (g->a_mode == GEMM_A_BACKWARD) {
        y += g->pad - ky, x += g->pad - kx;
        if (y < 0 || x < 0 || y % g->stride || x % g->stride) return -1;
        y /= g->stride, x /= g->stride;
    } else {
        y = y * g->stride + ky - g->pad, x = x * g->stride + kx - g->pad;
    }
    if (y < 0 || x < 0 || y >= g->source_height || x >= g->source_width) return -1;
    return (image * g->source_height + y) * g->source_width + x;
}

typedef struct operands {
    float *a, *b, *bias, *shift, *residual, *expected;
    int64_t rows_a, images;
} operands;

static operands operands_new(const gemm_call *g, const product *p) {
    operands o = {.images = p->images, .rows_a = g->a_mode == GEMM_A_ROWS ? g->m : p->images * g->source_height * g->source_width};
    o.a = values_new(o.rows_a * g->k, 1), o.b = values_new(g->taps * g->tap_b, 2), o.bias = values_new(g->n, 3);
    o.shift = values_new(o.images * g->n, 4), o.residual = values_new(g->m * g->n, 5),
    o.expected = memory_new((size_t)(g->m * g->n), sizeof(float));
    for (int64_t m = 0; m < g->m; m++)
        for (int64_t n = 0; n < g->n; n++) {
            double sum = 0;
            for (int64_t t = 0; t < g->taps; t++) {
                int64_t row = source_row(g, m, t);
                for (int64_t k = 0; k < g->k && row >= 0; k++)
                    sum += (double)o.a[row * g->k + k] *
                           (double)o.b[t * g->tap_b + (g->b_mode == GEMM_B_KN ? k * g->ldb + n : n * g->ldb + k)];
            }
            sum *= (double)g->scale;
            if (p->bias) sum += (double)o.bias[n];
            if (p->shift) sum += (double)o.shift[m / g->rows_per_image * g->n + n];
            if (p->residual) sum += (double)o.residual[m * g->n + n];
            o.expected[m * g->n + n] = (float)sum;
        }
    return o;
}

static void operands_free(operands *o) {
    float *all[] = {o->a, o->b, o->bias, o->shift, o->residual, o->expected};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void check(bool ok, const error *err) {
    if (!ok) fail_msg("%s", err->text);
}

static tensor *constant(tensor_pool *pool, int64_t rows, int64_t columns, const float *data) {
    error err;
    tensor *x = tensor_pool_constant(pool, "operand", DTYPE_F32, 2, (int64_t[]){rows, columns}, data, &err);
    check(x != NULL, &err);
    return x;
}

static double distance(const float *a, const float *b, int64_t n) {
    double d = 0, s = 1e-30;
    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    return sqrt(d / s);
}

static double run_product(device *d, gemm_call g, const product *p, const operands *o, gemm_tiling tiling) {
    error err;
    tensor_pool *pool = tensor_pool_create(d);
    tensor bias = {.rank = 1};
    float *zeros = memory_new((size_t)(g.m * g.n), sizeof *zeros);
    tiling.splits = p->splits;
    g.tiling = &tiling;
    g.a = constant(pool, o->rows_a, g.k, o->a), g.b = constant(pool, g.taps, g.tap_b, o->b), g.c = constant(pool, g.m, g.n, zeros);
    if (p->bias) {
        tensor *vector = tensor_pool_constant(pool, "bias", DTYPE_F32, 1, &g.n, o->bias, &err);
        check(vector != NULL, &err);
        bias = *vector;
        g.bias = &bias;
    }
    if (p->shift) g.shift = constant(pool, o->images, g.n, o->shift);
    if (p->residual) g.residual = constant(pool, g.m, g.n, o->residual);
    size_t scratch = kernel_gemm_scratch(&g, d->gpu);
    if (scratch) {
        g.scratch = tensor_pool_parameter(pool, "scratch", 1, (int64_t[]){(int64_t)(scratch / sizeof(float))}, &err);
        check(g.scratch != NULL, &err);
    }
    gpu_recording *rec = gpu_recording_begin(d->gpu);
    kernel_gemm(rec, &g);
    check(gpu_recording_end(rec, &err) && gpu_run(rec, &err), &err);
    gpu_recording_free(rec);
    check(tensor_read(d, g.c, zeros, &err), &err);
    double e = distance(zeros, o->expected, g.m * g.n);
    free(zeros);
    tensor_pool_free(pool);
    return e;
}

/* VULORA_TEST_CASE: the number of the only product to run. */
static void run_all(device *d, const gemm_tiling *tilings, size_t count) {
    const char *only = getenv("VULORA_TEST_CASE");
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        const product *p = &products[i];
        gemm_call g = call_of(p);
        operands o = operands_new(&g, p);
        for (size_t k = 0; k < count; k++) {
            const gemm_tiling *t = &tilings[k];
            if ((only && atoi(only) != (int)i) || (t->bm != t->bn && i > 0)) continue; /* one product shows an oblong tile */
            double e = run_product(d, g, p, &o, *t);
            if (!(e < 5e-4)) fail_msg("product %zu, tile %d x %d x %d, pairs %d: relative error %.2e", i, t->bm, t->bn, t->bk, t->pairs, e);
        }
        operands_free(&o);
    }
}

static device *open_vulkan(void) {
    error err;
    const char *name = getenv("VULORA_TEST_GPU");
    device *d = device_open(name ? name : "llvmpipe", "fp16", 0, &err);
    if (!d) print_message("skipped: %s\n", err.text);
    return d;
}

static void test_half(void **state) {
    (void)state;
    /* Short steps: software devices compile the unrolled programs slowly. */
    static const gemm_tiling tilings[] = {
        {GEMM_HALF, 64, 64, 8, 8, 8, false, 0, 1},
        {GEMM_HALF, 64, 64, 16, 8, 8, true, 0, 1},
        {GEMM_HALF, 128, 64, 16, 8, 8, false, 0, 1},
    };
    device *d = open_vulkan();
    if (!d) skip();
    run_all(d, tilings, sizeof tilings / sizeof *tilings);
    device_close(d);
}

static void test_matrix(void **state) {
    (void)state;
    device *d = open_vulkan();
    if (!d) skip();
    const gpu_info *info = gpu_get_info(d->gpu);
    if (!info->matrix_size || !gpu_has_shader("gemm_matrix_h")) {
        print_message("skipped: no matrix units, or no compiler for them\n");
        device_close(d);
        skip();
    }
    const gemm_tiling tiling = {GEMM_MATRIX, 64, 64, 32, 32, 32, false, info->subgroup_least, 1};
    run_all(d, &tiling, 1);
    device_close(d);
}

int main(void) {
    validation_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_half), cmocka_unit_test(test_matrix)};
    return validation_end(cmocka_run_group_tests(tests, NULL, NULL));
}
