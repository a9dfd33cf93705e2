/* Attention and its gradient against double precision, for every instruction set that this processor runs: odd sizes, causal, several
   images, heads split into spans of keys and of queries; and the same bytes for any number of threads. */
#include "base/memory.h"
#include "cpu/cpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct shape {
    int64_t images, heads, tq, tk, width;
    bool causal;
    float size; /* of q and k: larger ones make sharp probabilities */
} SHAPES[] = {
    {1, 1, 1, 1, 1, false, 1},      {1, 1, 1, 77, 40, false, 1},     {2, 3, 37, 77, 5, false, 1},    {3, 2, 70, 77, 40, false, 1},
    {1, 2, 77, 77, 64, true, 1},    {2, 1, 200, 150, 8, true, 2},    {1, 1, 300, 700, 40, false, 2}, {1, 1, 700, 1100, 40, false, 1},
    {3, 1, 130, 260, 80, false, 1}, {1, 2, 129, 257, 160, false, 1}, {1, 1, 90, 130, 512, false, 1}, {1, 1, 40, 200, 23, true, 1},
    {40, 1, 20, 17, 16, false, 1},
};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES, RESULTS = 5, GUARD = 16 };
static const char *const NAMES[RESULTS] = {"o", "lse", "dq", "dk", "dv"};
static const double WORST = 2e-6; /* L2 norm of the difference, relative to that of the result; at size 1, more where scores are large */

typedef struct trial {
    cpu_attention a;
    int64_t count[RESULTS];
    float *result[RESULTS];
    float *input[4]; /* q, k, v, dout */
    double *expected[RESULTS];
} trial;

static float *random_values(int64_t n, float size, uint64_t *state) {
    float *x = memory_new((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0; /* nearly normal */
        for (int k = 0; k < 4; k++) {
            *state = *state * 6364136223846793005u + 1442695040888963407u;
            sum += (double)(*state >> 40) / (1 << 24) - 0.5;
        }
        x[i] = size * (float)(sum * sqrt(3));
    }
    return x;
}

/* One query of one head: probabilities and what follows from them, in double precision. */
static void expect_query(trial *t, int64_t n, int64_t h, int64_t i, double *p) {
    const cpu_attention *a = &t->a;
    const float *qs = t->input[0], *ks = t->input[1], *vs = t->input[2], *dout = t->input[3];
    int64_t ld = a->heads * a->width, q = (n * a->tq + i) * ld + h * a->width, shown = a->causal && i + 1 < a->tk ? i + 1 : a->tk;
    double most = -INFINITY, sum = 0, delta = 0;
    for (int64_t j = 0; j < shown; j++) {
        int64_t k = (n * a->tk + j) * ld + h * a->width;
        p[j] = 0;
        for (int64_t c = 0; c < a->width; c++) p[j] += (double)qs[q + c] * ks[k + c];
        p[j] *= (double)a->scale;
        most = fmax(most, p[j]);
    }
    for (int64_t j = 0; j < shown; j++) sum += p[j] = exp(p[j] - most);
    t->expected[1][(n * a->heads + h) * a->tq + i] = most + log(sum);
    for (int64_t j = 0; j < shown; j++) {
        p[j] /= sum;
        for (int64_t c = 0; c < a->width; c++) {
            int64_t v = (n * a->tk + j) * ld + h * a->width + c;
            t->expected[0][q + c] += p[j] * vs[v];
            t->expected[4][v] += p[j] * dout[q + c];
        }
    }
    for (int64_t c = 0; c < a->width; c++) delta += dout[q + c] * t->expected[0][q + c];
    for (int64_t j = 0; j < shown; j++) {
        int64_t k = (n * a->tk + j) * ld + h * a->width;
        double ds = 0;
        for (int64_t c = 0; c < a->width; c++) ds += (double)dout[q + c] * vs[k + c];
        ds = p[j] * (ds - delta) * (double)a->scale;
        for (int64_t c = 0; c < a->width; c++) {
            t->expected[2][q + c] += ds * ks[k + c];
            t->expected[3][k + c] += ds * qs[q + c];
        }
    }
}

static void trial_open(trial *t, const struct shape *s) {
    int64_t q = s->images * s->heads * s->tq * s->width, k = s->images * s->heads * s->tk * s->width;
    uint64_t state = (uint64_t)(q * 31 + k);
    const int64_t count[RESULTS] = {q, s->images * s->heads * s->tq, q, k, k};
    for (int i = 0; i < 4; i++) t->input[i] = random_values(i == 0 || i == 3 ? q : k, i < 2 ? s->size : 1, &state);
    for (int i = 0; i < RESULTS; i++) {
        t->count[i] = count[i];
        t->result[i] = memory_new((size_t)count[i], sizeof(float));
        t->expected[i] = memory_new((size_t)count[i], sizeof(double));
        for (int64_t j = 0; j < count[i]; j++) t->expected[i][j] = 0;
    }
    t->a = (cpu_attention){.images = s->images, .heads = s->heads, .tq = s->tq, .tk = s->tk, .width = s->width, .causal = s->causal};
    t->a.scale = 1.0f / sqrtf((float)s->width);
    t->a.q = t->input[0], t->a.k = t->input[1], t->a.v = t->input[2], t->a.dout = t->input[3];
    t->a.o = t->result[0], t->a.lse = t->result[1], t->a.dq = t->result[2], t->a.dk = t->result[3], t->a.dv = t->result[4];
    double *p = memory_new((size_t)s->tk, sizeof *p);
    for (int64_t n = 0; n < s->images; n++)
        for (int64_t h = 0; h < s->heads; h++)
            for (int64_t i = 0; i < s->tq; i++) expect_query(t, n, h, i, p);
    free(p);
}

static void trial_close(trial *t) {
    for (int i = 0; i < 4; i++) free(t->input[i]);
    for (int i = 0; i < RESULTS; i++) {
        free(t->result[i]);
        free(t->expected[i]);
    }
}

/* Working memory of exactly the size asked for, full of NaN, and a guard behind it. */
static void run_guarded(void (*run)(const cpu_attention *, int, void *), size_t bytes, const cpu_attention *a, int threads) {
    size_t floats = (bytes + 3) / 4;
    float *scratch = aligned_alloc(64, ((floats + GUARD) * sizeof(float) + 63) / 64 * 64);
    assert_non_null(scratch);
    for (size_t i = 0; i < floats; i++) scratch[i] = NAN;
    for (size_t i = floats; i < floats + GUARD; i++) scratch[i] = 123;
    run(a, threads, scratch);
    for (size_t i = floats; i < floats + GUARD; i++) assert_true(scratch[i] == 123);
    free(scratch);
}

static void trial_run(trial *t, const cpu_kernels *k, int threads) {
    for (int i = 0; i < RESULTS; i++)
        for (int64_t j = 0; j < t->count[i]; j++) t->result[i][j] = NAN;
    run_guarded(k->attention, k->attention_scratch(&t->a, threads), &t->a, threads);
    run_guarded(k->attention_grad, k->attention_grad_scratch(&t->a, threads), &t->a, threads);
}

static double difference(const float *x, const double *expected, int64_t n) {
    double d = 0, all = 1e-12;
    for (int64_t i = 0; i < n; i++) {
        d += (x[i] - expected[i]) * (x[i] - expected[i]);
        all += expected[i] * expected[i];
    }
    return sqrt(d / all);
}

static void test_matches_double_precision(void **state) {
    (void)state;
    const cpu_kernels *k;
    for (int s = 0; s < SHAPE_COUNT; s++) {
        trial t;
        trial_open(&t, &SHAPES[s]);
        for (int set = 0; (k = cpu_kernels_at(set)); set++) {
            trial_run(&t, k, 2);
            for (int i = 0; i < RESULTS; i++) {
                double d = difference(t.result[i], t.expected[i], t.count[i]);
                if (!(d < WORST * (double)SHAPES[s].size)) fail_msg("%s, shape %d, %s: %.2e", k->name, s, NAMES[i], d);
            }
        }
        trial_close(&t);
    }
}

static void test_any_threads_same_bytes(void **state) {
    (void)state;
    const cpu_kernels *k;
    for (int s = 0; s < SHAPE_COUNT; s++) {
        trial t;
        trial_open(&t, &SHAPES[s]);
        for (int set = 0; (k = cpu_kernels_at(set)); set++) {
            float *one[RESULTS];
            trial_run(&t, k, 1);
            for (int i = 0; i < RESULTS; i++) {
                one[i] = memory_new((size_t)t.count[i], sizeof(float));
                memcpy(one[i], t.result[i], (size_t)t.count[i] * sizeof(float));
            }
            trial_run(&t, k, 5);
            for (int i = 0; i < RESULTS; i++) {
                assert_memory_equal(one[i], t.result[i], (size_t)t.count[i] * sizeof(float));
                free(one[i]);
            }
        }
        trial_close(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_matches_double_precision), cmocka_unit_test(test_any_threads_same_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
