/* Products of bf16 operands as a tape uses them: operands stored in bf16 and packed weights change no bit, results written in bf16 are the
   rounded ones; gated products and weight gradients against double precision. Every instruction set of this processor that has them. */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "tests/support/noise.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

typedef struct sample {
    int64_t m, n, k;
    dtype type; /* of the weights */
    bool kn, gated, bias;
    cpu_gather gather; /* kernel 0: a linear layer */
} sample;

/* A sample's operands: as fp32, and as they are stored. */
typedef struct operands {
    int64_t rows, a_rows, taps;
    float *a, *bias;
    void *a_short, *b;
} operands;

static void *stored_new(const float *x, int64_t count, dtype type) {
    void *y = memory_try_aligned((size_t)count * dtype_size(type) + 64);
    assert_non_null(y);
    dtype_from_f32(y, type, x, (size_t)count);
    return y;
}

static operands operands_new(const sample *s) {
    const cpu_gather *g = &s->gather;
    operands o = {.rows = s->m, .a_rows = s->m, .taps = 1};
    if (g->kernel) {
        o.rows = s->m * g->height * g->width, o.a_rows = s->m * g->source_height * g->source_width;
        o.taps = (int64_t)g->kernel * g->kernel;
    }
    int64_t weights = o.taps * s->n * s->k;
    float *b = noise_new(weights, 1 / sqrt((double)(o.taps * s->k)));
    o.a = noise_new(o.a_rows * s->k, 1);
    o.a_short = stored_new(o.a, o.a_rows * s->k, DTYPE_BF16);
    o.b = stored_new(b, weights, s->type);
    o.bias = s->bias ? noise_new(s->n, 1) : NULL;
    free(b);
    return o;
}

static void operands_free(operands *o) { free(o->a), free(o->a_short), free(o->b), free(o->bias); }

/* How a product is stored. */
typedef struct storage {
    dtype a, c;
    bool packed;
    int threads;
} storage;

static void *product_new(const cpu_kernels *kernels, const sample *s, const operands *o, storage how) {
    cpu_gemm g = {.m = o->rows,
                  .n = s->n,
                  .k = s->k,
                  .taps = (int)o->taps,
                  .gather = s->gather.kernel ? &s->gather : NULL,
                  .a = how.a == DTYPE_BF16 ? o->a_short : o->a,
                  .a_type = how.a,
                  .lda = s->k,
                  .b = o->b,
                  .b_type = s->type,
                  .kn = s->kn,
                  .scale = 0.5f,
                  .bias = o->bias,
                  .c_type = how.c,
                  .rows_per_image = o->rows,
                  .gated = s->gated,
                  .bf16 = true};
    assert_true(kernels->narrow(&g));
    size_t bytes = kernels->gemm_scratch(&g, how.threads);
    void *packed = NULL, *scratch = memory_try_aligned(bytes);
    if (how.packed) {
        cpu_weights w = {o->b, s->type, (int)o->taps, s->kn ? s->k : s->n, s->kn ? s->n : s->k};
        g.b = packed = memory_try_aligned(kernels->pack_bytes(&w));
        g.packed = true;
        memset(packed, 0xff, kernels->pack_bytes(&w));
        kernels->pack(&w, packed);
    }
    memset(scratch, 0xff, bytes); /* NaN wherever something is read that was not written */
    g.c = memory_try_aligned((size_t)(o->rows * s->n) * sizeof(float));
    kernels->gemm(&g, how.threads, scratch);
    free(packed), free(scratch);
    return g.c;
}

static void product_check(const sample *s) {
    operands o = operands_new(s);
    size_t count = (size_t)(o.rows * s->n) / (s->gated ? 2 : 1);
    for (int i = 0; cpu_kernels_at(i); i++) {
        const cpu_kernels *kernels = cpu_kernels_at(i);
        if (!kernels->bf16) continue;
        float *c = product_new(kernels, s, &o, (storage){DTYPE_F32, DTYPE_F32, false, 1});
        void *rounded = stored_new(c, (int64_t)count, DTYPE_BF16);
        for (int way = 0; way < 16; way++) {
            storage how = {way & 1 ? DTYPE_BF16 : DTYPE_F32, way & 2 ? DTYPE_BF16 : DTYPE_F32, (way & 4) != 0, way & 8 ? 3 : 1};
            void *other = product_new(kernels, s, &o, how);
            assert_memory_equal(other, how.c == DTYPE_BF16 ? rounded : c, count * dtype_size(how.c));
            free(other);
        }
        free(c), free(rounded);
    }
    operands_free(&o);
}

static void test_storage(void **unused) {
    (void)unused;
    const cpu_gather plain = {9, 7, 9, 7, 3, 1, 1, false}, plain_back = {9, 7, 9, 7, 3, 1, 1, true};
    const cpu_gather strided = {5, 4, 9, 7, 3, 2, 1, false}, strided_back = {9, 7, 5, 4, 3, 2, 1, true};
    const sample samples[] = {
        {.m = 77, .n = 64, .k = 96, .type = DTYPE_F16, .bias = true},
        {.m = 77, .n = 64, .k = 96, .type = DTYPE_F16, .kn = true},
        {.m = 1, .n = 17, .k = 33, .type = DTYPE_F32},
        {.m = 35, .n = 33, .k = 17, .type = DTYPE_BF16, .kn = true},
        {.m = 1100, .n = 80, .k = 1056, .type = DTYPE_F16, .bias = true},
        {.m = 1100, .n = 1056, .k = 80, .type = DTYPE_F16, .kn = true},
        {.m = 9000, .n = 160, .k = 320, .type = DTYPE_F16}, /* several bands, written past the caches */
        {.m = 9000, .n = 320, .k = 160, .type = DTYPE_F16, .kn = true},
        {.m = 2, .n = 40, .k = 64, .type = DTYPE_F16, .gather = plain, .bias = true},
        {.m = 2, .n = 64, .k = 40, .type = DTYPE_F16, .kn = true, .gather = plain_back},
        {.m = 2, .n = 33, .k = 37, .type = DTYPE_BF16, .gather = strided},
        {.m = 2, .n = 37, .k = 33, .type = DTYPE_F32, .kn = true, .gather = strided_back},
    };
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) product_check(&samples[i]);
}

static double gelu(double x) { return x / 2 * (1 + erf(x * sqrt(0.5))); }

static double distance(const float *x, const double *y, int64_t count) {
    double wrong = 0, all = 0;
    for (int64_t i = 0; i < count; i++) wrong += ((double)x[i] - y[i]) * ((double)x[i] - y[i]), all += y[i] * y[i];
    return sqrt(wrong / all);
}

static void test_gated(void **unused) {
    (void)unused;
    const sample samples[] = {{.m = 77, .n = 128, .k = 96, .type = DTYPE_F16, .gated = true, .bias = true},
                              {.m = 3, .n = 64, .k = 31, .type = DTYPE_F32, .gated = true},
                              {.m = 300, .n = 640, .k = 1056, .type = DTYPE_F16, .gated = true, .bias = true},
                              {.m = 9000, .n = 192, .k = 320, .type = DTYPE_F16, .gated = true, .bias = true}};
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        const sample *s = &samples[i];
        sample whole = *s;
        whole.gated = false;
        product_check(s);
        operands o = operands_new(s);
        int64_t half = s->n / 2;
        double *expected = memory_new((size_t)(o.rows * half), sizeof *expected);
        for (int set = 0; cpu_kernels_at(set); set++) {
            if (!cpu_kernels_at(set)->bf16) continue;
            const storage how = {DTYPE_F32, DTYPE_F32, true, 2};
            float *x = product_new(cpu_kernels_at(set), &whole, &o, how), *y = product_new(cpu_kernels_at(set), s, &o, how);
            for (int64_t j = 0; j < o.rows * half; j++) {
                const float *value = x + j / half * s->n + j % half;
                expected[j] = (double)value[0] * gelu((double)value[half]);
            }
            assert_true(distance(y, expected, o.rows * half) < 1e-6);
            free(x), free(y);
        }
        free(expected);
        operands_free(&o);
    }
}

static float *weight_grad_new(const cpu_kernels *kernels, cpu_weight_grad g, int threads) {
    size_t count = (size_t)(g.outputs * g.inputs), bytes = kernels->weight_grad_scratch(&g, threads);
    void *scratch = memory_try_aligned(bytes);
    memset(scratch, 0xff, bytes);
    g.dw = memory_new(count, sizeof(float));
    for (size_t i = 0; i < count; i++) g.dw[i] = 3; /* it is added to */
    kernels->weight_grad(&g, threads, scratch);
    free(scratch);
    return g.dw;
}

static void weight_grad_check(int64_t rows, int64_t outputs, int64_t inputs) {
    float *dy = noise_new(rows * outputs, 1), *x = noise_new(rows * inputs, 1);
    void *dy_short = stored_new(dy, rows * outputs, DTYPE_BF16), *x_short = stored_new(x, rows * inputs, DTYPE_BF16);
    double *expected = memory_new((size_t)(outputs * inputs), sizeof *expected);
    dtype_to_f32(dy, dy_short, DTYPE_BF16, (size_t)(rows * outputs));
    dtype_to_f32(x, x_short, DTYPE_BF16, (size_t)(rows * inputs));
    for (int64_t i = 0; i < outputs * inputs; i++) {
        expected[i] = 0;
        for (int64_t r = 0; r < rows; r++) expected[i] += (double)dy[r * outputs + i / inputs] * (double)x[r * inputs + i % inputs];
        expected[i] = 3 + 0.25 * expected[i];
    }
    for (int set = 0; cpu_kernels_at(set); set++) {
        const cpu_kernels *kernels = cpu_kernels_at(set);
        if (!kernels->bf16) continue;
        cpu_weight_grad g = {.rows = rows, .outputs = outputs, .inputs = inputs, .taps = 1, .dy = dy, .x = x, .scale = 0.25f, .bf16 = true};
        float *wide = weight_grad_new(kernels, g, 1);
        g.dy = dy_short, g.dy_type = DTYPE_BF16, g.x = x_short, g.x_type = DTYPE_BF16;
        float *narrow = weight_grad_new(kernels, g, 3);
        assert_true(distance(wide, expected, outputs * inputs) < 1e-5);
        assert_memory_equal(wide, narrow, (size_t)(outputs * inputs) * sizeof *wide);
        free(wide), free(narrow);
    }
    free(dy), free(x), free(dy_short), free(x_short), free(expected);
}

static void test_weight_gradient(void **unused) {
    (void)unused;
    weight_grad_check(77, 16, 48);
    weight_grad_check(1, 1, 1);
    weight_grad_check(333, 47, 65);
    weight_grad_check(4096, 4, 320); /* several chunks */
    weight_grad_check(600, 320, 16);
}

enum { TENSORS = 8 }; /* q, k, v, gradient of o; o, gradients of q, k, v */

/* Results 4.. of x, forward then backward, all stored as `type`; lse behind them. */
static void attend(const cpu_kernels *kernels, cpu_attention a, void *const x[TENSORS], dtype type, float *lse) {
    a.q = x[0], a.k = x[1], a.v = x[2], a.dout = x[3], a.o = x[4], a.dq = x[5], a.dk = x[6], a.dv = x[7], a.lse = lse;
    a.q_type = a.k_type = a.v_type = a.dout_type = a.o_type = a.dq_type = a.dk_type = a.dv_type = type;
    size_t forward = kernels->attention_scratch(&a, 2), backward = kernels->attention_grad_scratch(&a, 2);
    void *scratch = memory_try_aligned(forward > backward ? forward : backward);
    kernels->attention(&a, 2, scratch);
    kernels->attention_grad(&a, 2, scratch);
    free(scratch);
}

static void test_attention(void **unused) {
    (void)unused;
    static const int64_t shapes[][4] = {{2, 77, 77, 40}, {3, 300, 200, 80}, {1, 64, 513, 12}, {2, 40, 40, 160}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t heads = shapes[i][0], tq = shapes[i][1], tk = shapes[i][2], width = shapes[i][3];
        int64_t queries = heads * tq * width, keys = heads * tk * width;
        const int64_t count[TENSORS] = {queries, keys, keys, queries, queries, queries, keys, keys};
        cpu_attention a = {
            .images = 1, .heads = heads, .tq = tq, .tk = tk, .width = width, .causal = tq == tk, .scale = 0.2f, .bf16 = true};
        void *wide[TENSORS], *narrow[TENSORS];
        for (int k = 0; k < TENSORS; k++) {
            wide[k] = noise_new(count[k], 1);
            narrow[k] = stored_new(wide[k], count[k], DTYPE_BF16);
        }
        float *lse = memory_new((size_t)(heads * tq), sizeof *lse);
        for (int set = 0; cpu_kernels_at(set); set++) {
            if (!cpu_kernels_at(set)->bf16) continue;
            attend(cpu_kernels_at(set), a, wide, DTYPE_F32, lse);
            attend(cpu_kernels_at(set), a, narrow, DTYPE_BF16, lse);
            for (int k = 4; k < TENSORS; k++) {
                void *rounded = stored_new(wide[k], count[k], DTYPE_BF16);
                assert_memory_equal(rounded, narrow[k], (size_t)count[k] * 2);
                free(rounded);
            }
        }
        for (int k = 0; k < TENSORS; k++) free(wide[k]), free(narrow[k]);
        free(lse);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_storage), cmocka_unit_test(test_gated), cmocka_unit_test(test_weight_gradient),
                                       cmocka_unit_test(test_attention)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
