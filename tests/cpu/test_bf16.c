/* Products of bf16 operands, by every instruction set of this processor that has them: against double precision on operands rounded the
   same way (only the order of sums differs), and against exact operands (what rounding costs). */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "tests/support/noise.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Relative L2 differences. */
static const double TIGHT = 1e-5, EXACT = 4e-3;

/* Through a type and back; free the result. */
static float *rounded_new(const float *x, int64_t count, dtype type, void *stored) {
    void *through = stored ? stored : memory_new((size_t)count, dtype_size(type));
    float *y = memory_new((size_t)count, sizeof *y);
    dtype_from_f32(through, type, x, (size_t)count);
    dtype_to_f32(y, through, type, (size_t)count);
    if (!stored) free(through);
    return y;
}

/* Relative L2 difference. */
static double difference(const float *c, const double *expected, int64_t count) {
    double wrong = 0, all = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)c[i] - expected[i];
        wrong += d * d, all += expected[i] * expected[i];
    }
    return sqrt(wrong / all);
}

/* ---- products ---- */

typedef struct sample {
    int64_t m, n, k; /* of a gathered product: m is the number of images */
    dtype type;
    bool kn;
    float scale;
    bool bias, shift, residual;
    cpu_gather gather; /* kernel 0: a linear layer */
} sample;

typedef struct operands {
    float *a, *b, *bias, *shift, *residual; /* b: the values that `stored` has */
    void *stored;
    int64_t a_rows, rows, per_image, lda;
} operands;

static int64_t taps_of(const sample *s) { return s->gather.kernel ? s->gather.kernel * s->gather.kernel : 1; }

static operands operands_new(const sample *s) {
    const cpu_gather *g = &s->gather;
    int64_t weights = taps_of(s) * s->n * s->k;
    operands o = {.rows = s->m, .a_rows = s->m, .per_image = s->m > 1 ? (s->m + 1) / 2 : 1, .lda = s->k};
    if (g->kernel) {
        o.rows = s->m * g->height * g->width, o.a_rows = s->m * g->source_height * g->source_width;
        o.per_image = g->height * g->width;
    } else {
        o.lda = s->k + 3;
    }
    o.a = noise_new(o.a_rows * o.lda - (o.lda - s->k), 1);
    float *b = noise_new(weights, 1 / sqrt((double)(taps_of(s) * s->k)));
    o.stored = memory_new((size_t)weights, dtype_size(s->type));
    o.b = rounded_new(b, weights, s->type, o.stored);
    free(b);
    o.bias = s->bias ? noise_new(s->n, 1) : NULL;
    o.shift = s->shift ? noise_new((o.rows + o.per_image - 1) / o.per_image * s->n, 1) : NULL;
    o.residual = s->residual ? noise_new(o.rows * s->n, 1) : NULL;
    return o;
}

static void operands_free(operands *o) { free(o->a), free(o->b), free(o->bias), free(o->shift), free(o->residual), free(o->stored); }

/* The row of A that row p sees through a tap, or -1. */
static int64_t row_seen(const sample *s, int64_t p, int64_t tap) {
    const cpu_gather *g = &s->gather;
    if (!g->kernel) return p;
    int64_t image = p / (g->height * g->width), y = p / g->width % g->height, x = p % g->width;
    int64_t ty = tap / g->kernel, tx = tap % g->kernel, sy, sx;
    if (g->backward) {
        sy = y + g->pad - ty, sx = x + g->pad - tx;
        if (sy % g->stride || sx % g->stride) return -1;
        sy /= g->stride, sx /= g->stride;
    } else {
        sy = y * g->stride + ty - g->pad, sx = x * g->stride + tx - g->pad;
    }
    if (sy < 0 || sx < 0 || sy >= g->source_height || sx >= g->source_width) return -1;
    return (image * g->source_height + sy) * g->source_width + sx;
}

static double *product_new(const sample *s, const operands *o, const float *a, const float *b) {
    double *c = memory_new((size_t)(o->rows * s->n), sizeof *c);
    for (int64_t p = 0; p < o->rows; p++)
        for (int64_t n = 0; n < s->n; n++) {
            double sum = 0;
            for (int64_t tap = 0; tap < taps_of(s); tap++) {
                int64_t row = row_seen(s, p, tap);
                if (row < 0) continue;
                const float *x = a + row * o->lda, *w = b + tap * s->n * s->k + (s->kn ? n : n * s->k);
                for (int64_t k = 0; k < s->k; k++) sum += (double)x[k] * (double)w[s->kn ? k * s->n : k];
            }
            double *y = c + p * s->n + n;
            *y = sum * (double)s->scale;
            if (o->bias) *y += (double)o->bias[n];
            if (o->shift) *y += (double)o->shift[p / o->per_image * s->n + n];
            if (o->residual) *y += (double)o->residual[p * s->n + n];
        }
    return c;
}

/* c by the kernel; in_place: the residual is c itself. */
static void product_run(const cpu_kernels *kernels, const sample *s, const operands *o, int threads, bool in_place, float *c) {
    cpu_gemm g = {.m = o->rows,
                  .n = s->n,
                  .k = s->k,
                  .taps = (int)taps_of(s),
                  .gather = s->gather.kernel ? &s->gather : NULL,
                  .a = o->a,
                  .lda = o->lda,
                  .b = o->stored,
                  .b_type = s->type,
                  .kn = s->kn,
                  .scale = s->scale,
                  .bias = o->bias,
                  .shift = o->shift,
                  .residual = in_place ? c : o->residual,
                  .c = c,
                  .rows_per_image = o->per_image,
                  .bf16 = true};
    if (in_place) memcpy(c, o->residual, (size_t)(g.m * g.n) * sizeof *c);
    void *scratch = memory_try_aligned(kernels->gemm_scratch(&g, threads));
    assert_non_null(scratch);
    kernels->gemm(&g, threads, scratch);
    free(scratch);
}

static void product_check(const sample *s) {
    operands o = operands_new(s);
    int64_t count = o.rows * s->n, a_count = o.a_rows * o.lda - (o.lda - s->k), b_count = taps_of(s) * s->n * s->k;
    float *a = rounded_new(o.a, a_count, DTYPE_BF16, NULL), *b = rounded_new(o.b, b_count, DTYPE_BF16, NULL);
    double *expected = product_new(s, &o, a, b), *exact = product_new(s, &o, o.a, o.b);
    float *c = memory_new((size_t)count, sizeof *c), *other = memory_new((size_t)count, sizeof *c);
    for (int i = 0; cpu_kernels_at(i); i++) {
        const cpu_kernels *kernels = cpu_kernels_at(i);
        if (!kernels->bf16) continue;
        product_run(kernels, s, &o, 1, false, c);
        double tight = difference(c, expected, count), cost = difference(c, exact, count);
        print_message("%-10s %5d x %4d x %4d, kernel %d stride %d %-4s %s: %.1e, %.1e\n", kernels->name, (int)o.rows, (int)s->n, (int)s->k,
                      s->gather.kernel, s->gather.stride, dtype_name(s->type), s->kn ? "kn" : "nk", tight, cost);
        assert_true(tight <= TIGHT);
        assert_true(cost <= EXACT);
        product_run(kernels, s, &o, 3, o.residual != NULL, other);
        assert_memory_equal(c, other, (size_t)count * sizeof *c);
    }
    free(a), free(b), free(c), free(other), free(expected), free(exact);
    operands_free(&o);
}

static void test_linear(void **unused) {
    (void)unused;
    const sample samples[] = {
        {.m = 64, .n = 64, .k = 64, .type = DTYPE_F16, .scale = 1},
        {.m = 1, .n = 1, .k = 1, .type = DTYPE_F32, .scale = 1},
        {.m = 1, .n = 1280, .k = 320, .type = DTYPE_F16, .scale = 1, .bias = true},
        {.m = 77, .n = 100, .k = 768, .type = DTYPE_F16, .scale = 0.5f, .bias = true, .residual = true},
        {.m = 77, .n = 4, .k = 320, .type = DTYPE_F32, .scale = 1, .residual = true},
        {.m = 50, .n = 320, .k = 4, .type = DTYPE_F32, .kn = true, .scale = 2, .residual = true},
        {.m = 131, .n = 33, .k = 65, .type = DTYPE_BF16, .scale = 1, .shift = true},
        {.m = 131, .n = 33, .k = 65, .type = DTYPE_BF16, .kn = true, .scale = 1, .bias = true},
        {.m = 1100, .n = 80, .k = 1056, .type = DTYPE_F16, .scale = 1, .residual = true},
        {.m = 300, .n = 47, .k = 2561, .type = DTYPE_F16, .kn = true, .scale = 1, .residual = true},
        {.m = 40, .n = 290, .k = 700, .type = DTYPE_F16, .kn = true, .scale = 1},
        {.m = 34, .n = 31, .k = 31, .type = DTYPE_F32, .kn = true, .scale = 1},
        {.m = 15, .n = 17, .k = 33, .type = DTYPE_F32, .scale = 1},
    };
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) product_check(&samples[i]);
}

static void test_bands(void **unused) {
    (void)unused;
    product_check(&(sample){.m = 70000, .n = 3, .k = 180, .type = DTYPE_F16, .scale = 1, .bias = true});
    cpu_gather wide = {300, 401, 300, 401, 3, 1, 1, false};
    product_check(&(sample){.m = 2, .n = 3, .k = 33, .type = DTYPE_F16, .scale = 1, .shift = true, .gather = wide});
}

static void test_convolution(void **unused) {
    (void)unused;
    static const struct {
        int64_t height, width;
        int kernel, stride, before, after; /* padding */
    } shapes[] = {{8, 8, 3, 1, 1, 1},  {7, 13, 3, 1, 1, 1}, {16, 16, 3, 2, 1, 1}, {9, 7, 3, 2, 1, 1},   {12, 10, 3, 2, 0, 1},
                  {11, 6, 1, 1, 0, 0}, {11, 6, 1, 2, 0, 0}, {9, 8, 5, 1, 2, 2},   {17, 11, 5, 3, 2, 2}, {10, 33, 3, 1, 0, 0}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int backward = 0; backward < 2; backward++) {
            int kernel = shapes[i].kernel, stride = shapes[i].stride, pad = shapes[i].before;
            int64_t height = shapes[i].height, width = shapes[i].width;
            int64_t out_height = (height + pad + shapes[i].after - kernel) / stride + 1;
            int64_t out_width = (width + pad + shapes[i].after - kernel) / stride + 1;
            cpu_gather forward = {out_height, out_width, height, width, kernel, stride, pad, false};
            cpu_gather back = {height, width, out_height, out_width, kernel, stride, pad, true};
            product_check(&(sample){.m = 1 + (int64_t)(i % 3),
                                    .n = i % 2 ? 40 : 33,
                                    .k = i % 2 ? 64 : 37,
                                    .type = i % 3 ? DTYPE_F16 : DTYPE_BF16,
                                    .kn = backward,
                                    .scale = 1,
                                    .bias = !backward,
                                    .shift = !backward && i % 2,
                                    .residual = i % 3 != 1,
                                    .gather = backward ? back : forward});
        }
}

/* The U-Net's first and last layers, and one with more taps and channels than a piece of the sum. */
static void test_convolution_channels(void **unused) {
    (void)unused;
    cpu_gather square = {12, 12, 12, 12, 3, 1, 1, false};
    product_check(&(sample){.m = 1, .n = 320, .k = 4, .type = DTYPE_F16, .scale = 1, .bias = true, .gather = square});
    product_check(&(sample){.m = 1, .n = 4, .k = 320, .type = DTYPE_F32, .scale = 1, .bias = true, .gather = square});
    product_check(&(sample){.m = 1, .n = 36, .k = 640, .type = DTYPE_F16, .scale = 1, .shift = true, .gather = square});
}

/* ---- attention ---- */

typedef struct heads {
    int64_t images, heads, tq, tk, width;
    bool causal;
    float spread; /* of scores */
} heads;

/* In double precision, from q, k, v and dout as they are, with the exact softmax. */
typedef struct attended {
    double *o, *lse, *dq, *dk, *dv;
} attended;

static int64_t at(const heads *s, int64_t image, int64_t t, int64_t tokens, int64_t head) {
    return ((image * tokens + t) * s->heads + head) * s->width;
}

static double dot(const float *x, const float *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

static void query_attend(const heads *s, attended *r, const float *q, const float *k, const float *v, const float *dout, double scale,
                         int64_t image, int64_t head, int64_t t) {
    int64_t keys = s->causal ? t + 1 : s->tk, here = at(s, image, t, s->tq, head);
    double *p = memory_new((size_t)keys, sizeof *p), most = -1e300, sum = 0, delta = 0;
    for (int64_t j = 0; j < keys; j++) {
        p[j] = scale * dot(q + here, k + at(s, image, j, s->tk, head), s->width);
        if (p[j] > most) most = p[j];
    }
    for (int64_t j = 0; j < keys; j++) sum += p[j] = exp(p[j] - most);
    r->lse[(image * s->heads + head) * s->tq + t] = most + log(sum);
    for (int64_t j = 0; j < keys; j++) p[j] /= sum;
    for (int64_t i = 0; i < s->width; i++) {
        double o = 0;
        for (int64_t j = 0; j < keys; j++) o += p[j] * (double)v[at(s, image, j, s->tk, head) + i];
        r->o[here + i] = o;
        delta += o * (double)dout[here + i];
    }
    for (int64_t j = 0; j < keys; j++) {
        int64_t there = at(s, image, j, s->tk, head);
        double ds = scale * p[j] * (dot(dout + here, v + there, s->width) - delta);
        for (int64_t i = 0; i < s->width; i++) {
            r->dq[here + i] += ds * (double)k[there + i];
            r->dk[there + i] += ds * (double)q[here + i];
            r->dv[there + i] += p[j] * (double)dout[here + i];
        }
    }
    free(p);
}

static attended attended_new(const heads *s, const float *q, const float *k, const float *v, const float *dout, double scale) {
    size_t queries = (size_t)(s->images * s->heads * s->tq), keys = (size_t)(s->images * s->heads * s->tk), width = (size_t)s->width;
    attended r = {.o = memory_new(queries * width, sizeof(double)),
                  .lse = memory_new(queries, sizeof(double)),
                  .dq = memory_new(queries * width, sizeof(double)),
                  .dk = memory_new(keys * width, sizeof(double)),
                  .dv = memory_new(keys * width, sizeof(double))};
    for (int64_t image = 0; image < s->images; image++)
        for (int64_t head = 0; head < s->heads; head++)
            for (int64_t t = 0; t < s->tq; t++) query_attend(s, &r, q, k, v, dout, scale, image, head, t);
    return r;
}

static void attended_free(attended *r) { free(r->o), free(r->lse), free(r->dq), free(r->dk), free(r->dv); }

static void scratch_run(size_t bytes, void (*run)(const cpu_attention *, int, void *), const cpu_attention *a, int threads) {
    void *scratch = memory_try_aligned(bytes);
    assert_non_null(scratch);
    memset(scratch, 0xff, bytes); /* NaN wherever something is read that was not written */
    run(a, threads, scratch);
    free(scratch);
}

static void attention_check(const heads *s) {
    int64_t queries = s->images * s->heads * s->tq * s->width, keys = s->images * s->heads * s->tk * s->width;
    float *q = noise_new(queries, (double)s->spread), *k = noise_new(keys, 1), *v = noise_new(keys, 1), *dout = noise_new(queries, 1);
    float scale = 1 / sqrtf((float)s->width), *out[2][5];
    float *rounded[] = {rounded_new(q, queries, DTYPE_BF16, NULL), rounded_new(k, keys, DTYPE_BF16, NULL),
                        rounded_new(v, keys, DTYPE_BF16, NULL), rounded_new(dout, queries, DTYPE_BF16, NULL)};
    attended expected = attended_new(s, rounded[0], rounded[1], rounded[2], rounded[3], (double)scale);
    attended exact = attended_new(s, q, k, v, dout, (double)scale);
    const int64_t count[5] = {queries, queries / s->width, queries, keys, keys};
    const double *const want[2][5] = {{expected.o, expected.lse, expected.dq, expected.dk, expected.dv},
                                      {exact.o, exact.lse, exact.dq, exact.dk, exact.dv}};
    /* o, lse, dq, dk, dv: p and ds are rounded too */
    static const double limit[2][5] = {{4e-3, 2e-4, 6e-3, 6e-3, 4e-3}, {8e-3, 4e-3, 1e-2, 1e-2, 8e-3}};
    for (int i = 0; cpu_kernels_at(i); i++) {
        const cpu_kernels *kernels = cpu_kernels_at(i);
        if (!kernels->bf16) continue;
        for (int many = 0; many < 2; many++) {
            for (int j = 0; j < 5; j++) out[many][j] = memory_new((size_t)count[j], sizeof(float));
            cpu_attention a = {.images = s->images,
                               .heads = s->heads,
                               .tq = s->tq,
                               .tk = s->tk,
                               .width = s->width,
                               .causal = s->causal,
                               .scale = scale,
                               .q = q,
                               .k = k,
                               .v = v,
                               .o = out[many][0],
                               .lse = out[many][1],
                               .dout = dout,
                               .dq = out[many][2],
                               .dk = out[many][3],
                               .dv = out[many][4],
                               .bf16 = true};
            int threads = many ? 3 : 1;
            scratch_run(kernels->attention_scratch(&a, threads), kernels->attention, &a, threads);
            scratch_run(kernels->attention_grad_scratch(&a, threads), kernels->attention_grad, &a, threads);
        }
        print_message("%-10s %dx%d heads, %4d queries, %4d keys, width %3d:", kernels->name, (int)s->images, (int)s->heads, (int)s->tq,
                      (int)s->tk, (int)s->width);
        double wrong[2][5];
        for (int j = 0; j < 5; j++) {
            for (int e = 0; e < 2; e++) wrong[e][j] = difference(out[0][j], want[e][j], count[j]);
            print_message(" %.1e, %.1e;", wrong[0][j], wrong[1][j]);
        }
        print_message("\n");
        for (int j = 0; j < 5; j++) {
            for (int e = 0; e < 2; e++) assert_true(wrong[e][j] <= limit[e][j]);
            assert_memory_equal(out[0][j], out[1][j], (size_t)count[j] * sizeof(float));
            free(out[0][j]), free(out[1][j]);
        }
    }
    for (int j = 0; j < 4; j++) free(rounded[j]);
    free(q), free(k), free(v), free(dout);
    attended_free(&expected), attended_free(&exact);
}

static void test_attention(void **unused) {
    (void)unused;
    const heads samples[] = {
        {1, 2, 64, 64, 40, false, 1},    {2, 3, 50, 77, 40, false, 1},  {1, 2, 77, 77, 64, true, 1},
        {1, 1, 200, 300, 160, false, 1}, {1, 1, 33, 5, 512, false, 1},  {1, 2, 130, 257, 80, false, 3},
        {1, 2, 300, 300, 20, true, 2},   {2, 2, 129, 128, 8, false, 2}, {1, 8, 16, 77, 160, false, 1},
    };
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) attention_check(&samples[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_linear), cmocka_unit_test(test_convolution),
                                       cmocka_unit_test(test_convolution_channels), cmocka_unit_test(test_bands),
                                       cmocka_unit_test(test_attention)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
