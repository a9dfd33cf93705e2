/* Truncated singular value decompositions against whole ones from LAPACK: optimal over odd shapes and spectra; what is refused. */
#include "convert/eigen.h"
#include "convert/svd.h"

#include "base/random.h"

#include <cblas.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static float *noise(int64_t count, uint32_t stream) {
    float *x = malloc((size_t)count * sizeof *x);
    random_normal_fill(5, stream, 0, x, (size_t)count);
    return x;
}

/* x: [m, n] by rows = a [m, k] b [k, n] */
static float *product(const float *a, const float *b, int64_t m, int64_t k, int64_t n) {
    float *x = malloc((size_t)(m * n) * sizeof *x);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)k, 1, a, (int)k, b, (int)n, 0, x, (int)n);
    return x;
}

/* Relative Frobenius norm of a - u diag(s) vt. */
static double distance(const float *a, const svd *d) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < d->m; i++) {
        for (int64_t j = 0; j < d->n; j++) {
            double sum = 0;
            for (int64_t k = 0; k < d->rank; k++) sum += (double)d->u[i * d->rank + k] * d->s[k] * d->vt[k * d->n + j];
            difference += (a[i * d->n + j] - sum) * (a[i * d->n + j] - sum);
            norm += (double)a[i * d->n + j] * a[i * d->n + j];
        }
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

/* The smallest relative error there is at that rank. */
static double best(const float *a, int64_t m, int64_t n, int64_t rank) {
    int64_t few = m < n ? m : n;
    double *x = malloc((size_t)(m * n) * sizeof *x), *u = malloc((size_t)(m * few) * sizeof *u), *s = malloc((size_t)few * sizeof *s),
           *vt = malloc((size_t)(few * n) * sizeof *vt), cut = 0, all = 0;
    for (int64_t i = 0; i < m * n; i++) x[i] = a[i];
    assert_true(svd_rows(x, m, n, u, s, vt, NULL));
    for (int64_t k = few; k-- > 0;) all += s[k] * s[k], cut += k >= rank ? s[k] * s[k] : 0;
    free(x);
    free(u);
    free(s);
    free(vt);
    return all > 0 ? sqrt(cut / all) : 0;
}

static void check_orthonormal(const svd *d) {
    for (int64_t a = 0; a < d->rank; a++) {
        assert_true(d->s[a] >= 0 && (a == 0 || d->s[a] <= d->s[a - 1]));
        for (int64_t b = 0; b <= a; b++) {
            double left = 0, right = 0;
            for (int64_t i = 0; i < d->m; i++) left += (double)d->u[i * d->rank + a] * d->u[i * d->rank + b];
            for (int64_t j = 0; j < d->n; j++) right += (double)d->vt[a * d->n + j] * d->vt[b * d->n + j];
            if (d->s[a] > 1e-4f * d->s[0]) assert_true(fabs(left - (a == b)) < 2e-3 && fabs(right - (a == b)) < 2e-3);
        }
    }
}

static void check_optimal(const float *a, int64_t m, int64_t n, int64_t most, const svd *d) {
    int64_t few = m < n ? m : n, rank = most > 0 && most < few ? most : few;
    assert_true(d->m == m && d->n == n && d->rank <= rank);
    double smallest = best(a, m, n, d->rank), reached = distance(a, d);
    if (reached > smallest * 1.0001 + 2e-6 || fabs(d->error - reached) > 1e-4 * reached + 2e-6)
        fail_msg("%lld x %lld to rank %lld: %.9g away, said %.9g, possible %.9g", (long long)m, (long long)n, (long long)most, reached,
                 d->error, smallest);
    check_orthonormal(d);
}

static const struct {
    int64_t m, n, most;
} SHAPES[] = {{1, 1, 1},    {1, 9, 4},      {9, 1, 4},     {2, 3, 0},     {7, 7, 3},     {33, 5, 2},      {5, 33, 0},    {64, 300, 8},
              {300, 64, 8}, {129, 131, 17}, {700, 90, 16}, {400, 520, 4}, {520, 400, 4}, {350, 1100, 16}, {600, 600, 1}, {64, 64, 1000}};

static void check_matrix(const float *a, int64_t m, int64_t n, int64_t most) {
    error err;
    svd d;
    if (!svd_matrix(a, m, n, most, &d, &err)) fail_msg("%s", err.text);
    assert_int_equal(d.rank, most > 0 && most < m && most < n ? most : m < n ? m : n);
    check_optimal(a, m, n, most, &d);
    svd_free(&d);
}

/* Random matrices, whose spectrum decays slowly: the hardest for anything that estimates. */
static void test_slow_spectra(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        float *a = noise(SHAPES[i].m * SHAPES[i].n, (uint32_t)i);
        check_matrix(a, SHAPES[i].m, SHAPES[i].n, SHAPES[i].most);
        free(a);
    }
}

/* Rank 1 and 5, alone and with the noise of rounding: what a merged adapter leaves behind. */
static void test_low_rank(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        int64_t m = SHAPES[i].m, n = SHAPES[i].n;
        for (int64_t rank = 1; rank <= 5; rank += 4) {
            float *up = noise(m * rank, 1), *down = noise(rank * n, 2), *a = product(up, down, m, rank, n), *more = noise(m * n, 3);
            check_matrix(a, m, n, SHAPES[i].most);
            for (int64_t j = 0; j < m * n; j++) a[j] += 1e-3f * more[j];
            check_matrix(a, m, n, SHAPES[i].most);
            free(up);
            free(down);
            free(a);
            free(more);
        }
    }
}

/* Singular values 1, 1/2, 1/4, ... and 1, 1/2, 1/3, ... */
static void test_decaying_spectra(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        int64_t m = SHAPES[i].m, n = SHAPES[i].n, few = m < n ? m : n;
        for (int harmonic = 0; harmonic < 2; harmonic++) {
            float *up = noise(m * few, 4), *down = noise(few * n, 5);
            for (int64_t j = 0; j < m * few; j++) up[j] *= harmonic ? 1.0f / (float)(j % few + 1) : ldexpf(1, -(int)(j % few));
            float *a = product(up, down, m, few, n);
            check_matrix(a, m, n, SHAPES[i].most);
            free(up);
            free(down);
            free(a);
        }
    }
}

static void test_zero(void **state) {
    (void)state;
    float *a = calloc(70 * 400, sizeof *a);
    for (int64_t most = 0; most <= 3; most += 3) {
        svd d;
        assert_true(svd_matrix(a, 70, 400, most, &d, NULL));
        assert_true(d.norm == 0 && d.error == 0 && distance(a, &d) == 0);
        svd_free(&d);
        assert_true(svd_product(a, a, 70, 5, 80, most, &d, NULL));
        assert_true(d.norm == 0 && d.error == 0 && distance(a, &d) == 0);
        svd_free(&d);
    }
    free(a);
}

/* Factors of any inner size, larger than the product's too. */
static void test_products(void **state) {
    (void)state;
    static const int64_t inner[] = {1, 4, 12, 40, 200};
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        for (size_t j = 0; j < sizeof inner / sizeof *inner; j++) {
            int64_t m = SHAPES[i].m, k = inner[j], n = SHAPES[i].n, most = SHAPES[i].most;
            float *up = noise(m * k, 6), *down = noise(k * n, 7), *a = product(up, down, m, k, n);
            error err;
            svd d;
            if (!svd_product(up, down, m, k, n, most, &d, &err)) fail_msg("%s", err.text);
            check_optimal(a, m, n, most, &d);
            svd_free(&d);
            free(up);
            free(down);
            free(a);
        }
    }
}

static void test_same_every_time(void **state) {
    (void)state;
    float *a = noise(300 * 500, 8);
    svd first, second;
    assert_true(svd_matrix(a, 300, 500, 6, &first, NULL) && svd_matrix(a, 300, 500, 6, &second, NULL));
    assert_memory_equal(first.u, second.u, 300 * 6 * sizeof *a);
    assert_memory_equal(first.vt, second.vt, 500 * 6 * sizeof *a);
    svd_free(&first);
    svd_free(&second);
    free(a);
}

static void test_refuses(void **state) {
    (void)state;
    float *a = noise(40 * 30, 9), *b = noise(40 * 30, 10);
    error err;
    svd d;
    for (int which = 0; which < 3; which++) {
        a[77] = which == 0 ? NAN : which == 1 ? INFINITY : -INFINITY;
        assert_false(svd_matrix(a, 40, 30, 3, &d, &err));
        assert_non_null(strstr(err.text, "NaN"));
        assert_false(svd_product(a, b, 40, 30, 40, 3, &d, &err) || svd_product(b, a, 30, 40, 30, 3, &d, &err));
        assert_true(!d.u && !d.s && !d.vt);
    }
    assert_false(svd_matrix(b, 0, 30, 3, &d, &err) || svd_product(b, b, 4, 0, 4, 3, &d, &err));
    free(a);
    free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_spectra), cmocka_unit_test(test_low_rank), cmocka_unit_test(test_decaying_spectra),
        cmocka_unit_test(test_zero),         cmocka_unit_test(test_products), cmocka_unit_test(test_same_every_time),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
