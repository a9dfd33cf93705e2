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

/* FORWARD, or the gradient of the input or of the weight. */
typedef enum pass { FORWARD, DATA, WEIGHT } pass;

/* A convolution of [images, h, w, in] or, with kernel 0, a linear layer of h rows. */
typedef struct product {
    int64_t images, h, w, in, out;
    int kernel, stride, pad_before, pad_after;
    pass pass;
    bool bias, shift, residual;
    bool trained; /* the weight is fp32 on every device */
    float scale;
    int splits;
} product;

/* What gemm_half and gemm_matrix take. */
static const product products[] = {
    {1, 70, 1, 64, 52, .bias = true, .residual = true, .scale = 0.5f, .splits = 1},
    {1, 200, 1, 96, 136, .scale = 1, .splits = 1},
    {1, 33, 1, 640, 72, .bias = true, .residual = true, .scale = 2, .splits = 3},
    {1, 130, 1, 136, 64, .pass = DATA, .residual = true, .scale = 1, .splits = 1},
    {1, 65, 1, 72, 160, .pass = DATA, .scale = 0.25f, .splits = 2},
    {2, 7, 9, 32, 20, 3, 1, 1, 1, .bias = true, .shift = true, .residual = true, .scale = 1, .splits = 1},
    {1, 16, 12, 64, 132, 3, 1, 1, 1, .bias = true, .shift = true, .scale = 1, .splits = 4},
    {3, 9, 8, 32, 12, 3, 2, 1, 1, .bias = true, .scale = 1, .splits = 1},
    {1, 8, 10, 32, 24, 3, 2, 0, 1, .scale = 1, .splits = 1},
    {2, 7, 9, 24, 32, 3, 1, 1, 1, .pass = DATA, .residual = true, .scale = 1, .splits = 1},
    {2, 9, 8, 16, 64, 3, 2, 1, 1, .pass = DATA, .scale = 1, .splits = 1},
    {1, 8, 10, 40, 32, 3, 2, 0, 1, .pass = DATA, .scale = 1, .splits = 3},
    {3, 9, 13, 72, 64, 3, 2, 1, 1, .pass = DATA, .residual = true, .scale = 1, .splits = 2},
    {2, 1, 1, 16, 32, 3, 2, 1, 1, .pass = DATA, .scale = 1, .splits = 1},
    {1, 77, 1, 72, 136, .pass = WEIGHT, .scale = 0.5f, .splits = 1},
    {1, 96, 1, 64, 24, .pass = WEIGHT, .scale = 1, .splits = 1},
    {1, 1030, 1, 8, 72, .pass = WEIGHT, .scale = 2, .splits = 5},
    {2, 7, 9, 72, 16, 3, 1, 1, 1, .pass = WEIGHT, .scale = 1, .splits = 1},
    {1, 16, 8, 16, 72, 3, 1, 1, 1, .pass = WEIGHT, .scale = 1, .splits = 1},
    {3, 9, 8, 24, 40, 3, 2, 1, 1, .pass = WEIGHT, .scale = 0.5f, .splits = 3},
    {2, 8, 10, 16, 8, 3, 2, 0, 1, .pass = WEIGHT, .scale = 1, .splits = 2},
    {5, 1, 1, 8, 16, 3, 1, 1, 1, .pass = WEIGHT, .scale = 1, .splits = 1},
    {2, 7, 6, 16, 8, 1, 2, 0, 0, .pass = WEIGHT, .scale = 1, .splits = 1},
};

/* What only gemm takes: adapters of every rank with fp32 weights, and odd sizes. */
static const product narrow[] = {
    {1, 77, 1, 320, 1, .trained = true, .scale = 1, .splits = 1},
    {1, 130, 1, 321, 3, .trained = true, .scale = 1, .splits = 1},
    {1, 70, 1, 320, 4, .trained = true, .scale = 1, .splits = 3},
    {1, 100, 1, 640, 16, .trained = true, .scale = 1, .splits = 2},
    {1, 65, 1, 256, 64, .trained = true, .bias = true, .scale = 1, .splits = 1},
    {1, 33, 1, 128, 128, .trained = true, .scale = 1, .splits = 1},
    {1, 77, 1, 1, 40, .trained = true, .residual = true, .scale = 0.5f, .splits = 1},
    {1, 130, 1, 3, 321, .trained = true, .residual = true, .scale = 0.5f, .splits = 1},
    {1, 70, 1, 16, 320, .trained = true, .residual = true, .scale = 2, .splits = 1},
    {1, 65, 1, 64, 100, .trained = true, .residual = true, .scale = 1, .splits = 1},
    {1, 77, 1, 321, 3, .pass = DATA, .trained = true, .residual = true, .scale = 1, .splits = 1},
    {1, 66, 1, 4, 320, .pass = DATA, .trained = true, .scale = 0.5f, .splits = 2},
    {1, 40, 1, 16, 640, .pass = DATA, .trained = true, .scale = 0.5f, .splits = 1},
    {1, 77, 1, 320, 1, .pass = WEIGHT, .scale = 1, .splits = 1},
    {1, 131, 1, 33, 3, .pass = WEIGHT, .scale = 1, .splits = 4},
    {1, 256, 1, 72, 16, .pass = WEIGHT, .scale = 0.5f, .splits = 3},
    {1, 300, 1, 16, 72, .pass = WEIGHT, .scale = 0.5f, .splits = 7},
    {1, 128, 1, 64, 64, .pass = WEIGHT, .scale = 1, .splits = 1},
    {1, 200, 1, 3, 129, .pass = WEIGHT, .scale = 1, .splits = 2},
    {2, 5, 7, 12, 16, 3, 1, 1, 1, .trained = true, .scale = 1, .splits = 1},
    {2, 5, 7, 16, 4, 3, 1, 1, 1, .pass = WEIGHT, .scale = 1, .splits = 2},
    {1, 9, 7, 33, 3, 3, 2, 1, 1, .pass = WEIGHT, .scale = 1, .splits = 1},
    {1, 8, 8, 16, 16, 3, 2, 0, 1, .pass = WEIGHT, .scale = 1, .splits = 3},
    {2, 5, 7, 16, 4, 3, 2, 1, 1, .pass = DATA, .trained = true, .residual = true, .scale = 1, .splits = 1},
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
    bool conv = p->kernel > 0, backward = p->pass == DATA;
    int64_t oh = conv ? out_size(p->h, p) : p->h, ow = conv ? out_size(p->w, p) : p->w;
    int64_t inside = p->images * p->h * p->w, outside = p->images * oh * ow;
    gemm_call g = {.taps = conv ? p->kernel * p->kernel : 1,
                   .tap_b = p->in * p->out,
                   .ldb = p->in,
                   .kernel = p->kernel,
                   .stride = p->stride,
                   .pad = p->pad_before,
                   .scale = p->scale};
    g.height = backward ? p->h : oh, g.width = backward ? p->w : ow;
    g.source_height = backward ? oh : p->h, g.source_width = backward ? ow : p->w;
    if (p->pass == WEIGHT) {
        g.m = g.lda = p->out, g.n = p->in, g.k = outside;
        g.a_mode = GEMM_A_COLUMNS, g.b_mode = conv ? GEMM_B_GATHER : GEMM_B_KN;
        g.accumulate = true, g.tap_outputs = conv, g.tap_b = 0;
        return g;
    }
    g.m = backward ? inside : outside, g.n = backward ? p->in : p->out, g.k = g.lda = backward ? p->out : p->in;
    g.rows_per_image = g.height * g.width;
    g.a_mode = !conv ? GEMM_A_ROWS : backward ? GEMM_A_BACKWARD : GEMM_A_FORWARD;
    g.b_mode = backward ? GEMM_B_KN : GEMM_B_NK;
    return g;
}

/* The row of the source image that tap t of pixel (or row) m reads, or -1. */
static int64_t source_row(const gemm_call *g, int64_t m, int64_t t) {
    if (g->kernel == 0) return m;
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
    int64_t a_dim[2], b_dim[2], c_dim[2], images; /* residual: what C is before, with WEIGHT */
} operands;

static double dot(const gemm_call *g, const operands *o, int64_t t, int64_t m, int64_t n) {
    double sum = 0;
    for (int64_t k = 0; k < g->k && g->accumulate; k++) {
        int64_t row = source_row(g, k, t);
        if (row >= 0) sum += (double)o->a[k * g->lda + m] * (double)o->b[row * g->ldb + n];
    }
    int64_t row = g->accumulate ? -1 : source_row(g, m, t);
    for (int64_t k = 0; k < g->k && row >= 0; k++)
        sum += (double)o->a[row * g->k + k] * (double)o->b[t * g->tap_b + (g->b_mode == GEMM_B_KN ? k * g->ldb + n : n * g->ldb + k)];
    return sum;
}

static void expect(const gemm_call *g, const product *p, operands *o) {
    for (int64_t at = 0; at < o->c_dim[0] * o->c_dim[1]; at++) {
        int64_t m = at / g->n % g->m, n = at % g->n;
        double sum = 0;
        if (p->pass == WEIGHT)
            sum = dot(g, o, at / (g->m * g->n), m, n);
        else
            for (int64_t t = 0; t < g->taps; t++) sum += dot(g, o, t, m, n);
        sum *= (double)g->scale;
        if (p->bias) sum += (double)o->bias[n];
        if (p->shift) sum += (double)o->shift[m / g->rows_per_image * g->n + n];
        if (p->residual || p->pass == WEIGHT) sum += (double)o->residual[at];
        o->expected[at] = (float)sum;
    }
}

static operands operands_new(const gemm_call *g, const product *p) {
    int64_t source = p->images * g->source_height * g->source_width;
    operands o = {.images = p->images, .a_dim = {source, g->k}, .b_dim = {g->taps, g->tap_b}, .c_dim = {g->m, g->n}};
    if (g->a_mode == GEMM_A_ROWS) o.a_dim[0] = g->m;
    if (p->pass == WEIGHT) {
        o.a_dim[0] = g->k, o.a_dim[1] = g->m, o.b_dim[0] = source, o.b_dim[1] = g->n;
        o.c_dim[0] = g->taps * g->m;
    }
    o.a = values_new(o.a_dim[0] * o.a_dim[1], 1), o.b = values_new(o.b_dim[0] * o.b_dim[1], 2), o.bias = values_new(g->n, 3);
    o.shift = values_new(o.images * g->n, 4), o.residual = values_new(o.c_dim[0] * o.c_dim[1], 5);
    o.expected = memory_new((size_t)(o.c_dim[0] * o.c_dim[1]), sizeof(float));
    expect(g, p, &o);
    return o;
}

static void operands_free(operands *o) {
    float *all[] = {o->a, o->b, o->bias, o->shift, o->residual, o->expected};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void check(bool ok, const error *err) {
    if (!ok) fail_msg("%s", err->text);
}

static tensor *constant(tensor_pool *pool, const int64_t dim[2], const float *data) {
    error err;
    tensor *x = tensor_pool_constant(pool, "operand", DTYPE_F32, 2, dim, data, &err);
    check(x != NULL, &err);
    return x;
}

/* fp32 on every device. */
static tensor *parameter(device *d, tensor_pool *pool, const int64_t dim[2], const float *data) {
    error err;
    tensor *x = tensor_pool_parameter(pool, "parameter", 2, dim, &err);
    check(x && tensor_write(d, x, data, &err), &err);
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
    int64_t results = o->c_dim[0] * o->c_dim[1];
    float *c = memory_new((size_t)results, sizeof *c);
    tiling.splits = p->splits;
    g.tiling = &tiling;
    g.a = constant(pool, o->a_dim, o->a);
    g.b = p->trained ? parameter(d, pool, o->b_dim, o->b) : constant(pool, o->b_dim, o->b);
    g.c = p->pass == WEIGHT ? parameter(d, pool, o->c_dim, o->residual) : constant(pool, o->c_dim, c);
    if (p->bias) {
        tensor *vector = tensor_pool_constant(pool, "bias", DTYPE_F32, 1, &g.n, o->bias, &err);
        check(vector != NULL, &err);
        bias = *vector;
        g.bias = &bias;
    }
    if (p->shift) g.shift = constant(pool, (int64_t[]){o->images, g.n}, o->shift);
    if (p->residual) g.residual = constant(pool, (int64_t[]){g.m, g.n}, o->residual);
    size_t scratch = kernel_gemm_scratch(&g, d->gpu);
    if (scratch) {
        g.scratch = tensor_pool_parameter(pool, "scratch", 1, (int64_t[]){(int64_t)(scratch / sizeof(float))}, &err);
        check(g.scratch != NULL, &err);
    }
    gpu_recording *rec = gpu_recording_begin(d->gpu);
    kernel_gemm(rec, &g);
    check(gpu_recording_end(rec, &err) && gpu_run(rec, &err), &err);
    gpu_recording_free(rec);
    check(tensor_read(d, g.c, c, &err), &err);
    double e = distance(c, o->expected, results);
    free(c);
    tensor_pool_free(pool);
    return e;
}

/* Every product in one of the tilings, in turn, beginning with `first`. VULORA_TEST_CASE: the number of the only product to run. */
static void run_all(device *d, const product *list, size_t products_count, const gemm_tiling *tilings, size_t count, size_t first) {
    const char *only = getenv("VULORA_TEST_CASE");
    for (size_t i = 0; i < products_count; i++) {
        const product *p = &list[i];
        gemm_call g = call_of(p);
        const gemm_tiling *t = &tilings[(i + first) % count];
        if (only && atoi(only) != (int)i) continue;
        operands o = operands_new(&g, p);
        double e = run_product(d, g, p, &o, *t);
        if (!(e < 5e-4))
            fail_msg("product %zu, tile %d x %d x %d, %d slices, pairs %d: relative error %.2e", i, t->bm, t->bn, t->bk, t->slices,
                     t->pairs, e);
        operands_free(&o);
    }
}

static device *open_vulkan(const char *precision) {
    error err;
    const char *name = getenv("VULORA_TEST_GPU");
    device *d = device_open(name ? name : "llvmpipe", precision, 0, &err);
    if (!d) print_message("skipped: %s\n", err.text);
    return d;
}

#define HALF(m, n, k, in_pairs) \
    { .kernel = GEMM_HALF, .bm = m, .bn = n, .bk = k, .tm = 8, .tn = 8, .pairs = in_pairs }

static void test_half(void **state) {
    (void)state;
    /* Short steps: software devices compile the unrolled programs slowly. */
    static const gemm_tiling tilings[] = {HALF(64, 64, 8, false), HALF(64, 64, 16, true), HALF(64, 64, 16, false)};
    static const gemm_tiling oblong[] = {HALF(128, 64, 16, false), HALF(64, 128, 16, true)};
    device *d = open_vulkan("fp16");
    if (!d) skip();
    run_all(d, products, sizeof products / sizeof *products, tilings, sizeof tilings / sizeof *tilings, 0);
    run_all(d, products, 2, oblong, 2, 0);
    device_close(d);
}

static void test_matrix(void **state) {
    (void)state;
    device *d = open_vulkan("fp16");
    if (!d) skip();
    const gpu_info *info = gpu_get_info(d->gpu);
    if (!info->matrix_size || !gpu_has_shader("gemm_matrix_h")) {
        print_message("skipped: no matrix units, or no compiler for them\n");
        device_close(d);
        skip();
    }
    const gemm_tiling tiling = {.kernel = GEMM_MATRIX, .bm = 64, .bn = 64, .bk = 32, .tm = 32, .tn = 32, .subgroup = info->subgroup_least};
    run_all(d, products, sizeof products / sizeof *products, &tiling, 1, 0);
    device_close(d);
}

#define GENERAL(m, n, k, across, parts) \
    { .kernel = GEMM_GENERAL, .bm = m, .bn = n, .bk = k, .tm = across, .tn = across, .slices = parts, .unroll = 2 }

/* The tiles that kernel_tiling.c chooses from. */
static void run_general(const char *precision, size_t first) {
    static const gemm_tiling tilings[] = {
        GENERAL(64, 64, 16, 8, 1), GENERAL(64, 64, 32, 8, 2),  GENERAL(32, 32, 16, 4, 1),
        GENERAL(32, 32, 64, 4, 4), GENERAL(64, 16, 64, 4, 4),  GENERAL(32, 16, 64, 4, 4),
        GENERAL(16, 64, 64, 4, 4), GENERAL(16, 16, 128, 4, 8), GENERAL(16, 32, 64, 4, 4),
    };
    device *d = open_vulkan(precision);
    if (!d) skip();
    run_all(d, narrow, sizeof narrow / sizeof *narrow, tilings, sizeof tilings / sizeof *tilings, first);
    device_close(d);
}

static void test_general_half(void **state) {
    (void)state;
    run_general("fp16", 0);
}

static void test_general_float(void **state) {
    (void)state;
    run_general("fp32", 4);
}

int main(void) {
    validation_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_half), cmocka_unit_test(test_matrix), cmocka_unit_test(test_general_half),
                                       cmocka_unit_test(test_general_float)};
    return validation_end(cmocka_run_group_tests(tests, NULL, NULL));
}
