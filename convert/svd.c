/* Singular values through the Gram matrix of the shorter side, in double precision: its eigenvalues are their squares, so that what float
   input can tell (1e-7 of the largest one) survives the squaring, at a fraction of the cost of bidiagonalising a long matrix. Of few
   singular values only their eigenvectors are computed: 32 of a [1280, 11520] take half a second of one thread. A randomized range finder
   would not be faster: on a random matrix of that size, whose spectrum hardly decays, it took 30 power iterations (of 40 vectors each, four
   times the Gram matrix's arithmetic) to come within 1e-4 of the best, where this is exact. */
#include "convert/svd.h"

#include "base/memory.h"
#include "convert/eigen.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PANEL = 512 }; /* of the long side, converted to double at a time */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

static bool out_of_memory(error *err) { return error_set(err, "not enough memory for a singular value decomposition"); }

void svd_free(svd *d) {
    free(d->u);
    free(d->s);
    free(d->vt);
    memset(d, 0, sizeof *d);
}

static bool svd_allocate(svd *d, int64_t m, int64_t n, int64_t rank, error *err) {
    *d = (svd){.m = m, .n = n, .rank = rank};
    d->u = memory_try_aligned((size_t)(m * rank) * sizeof(float));
    d->s = memory_try_aligned((size_t)rank * sizeof(float));
    d->vt = memory_try_aligned((size_t)(rank * n) * sizeof(float));
    if (d->u && d->s && d->vt) return true;
    svd_free(d);
    return out_of_memory(err);
}

static bool check(const char *what, const float *x, int64_t rows, int64_t columns, error *err) {
    if (rows < 1 || columns < 1 || rows > INT32_MAX || columns > INT32_MAX)
        return error_set(err, "%s of %lld x %lld has no singular values", what, (long long)rows, (long long)columns);
    float sum = 0; /* x - x: 0, or NaN of anything that is not finite */
    for (int64_t i = 0; i < rows * columns; i++) sum += x[i] - x[i];
    return sum == 0 || error_set(err, "%s has NaN or infinity in it", what);
}

/* gram: [short, short], its lower triangle by columns: a transpose(a), or transpose(a) a when a has more rows than columns. */
static bool gram_make(const float *a, int64_t m, int64_t n, double *gram, error *err) {
    int64_t few = min64(m, n), many = m + n - few;
    double *panel = memory_try_aligned((size_t)(few * min64(PANEL, many)) * sizeof *panel);
    if (!panel) return out_of_memory(err);
    memset(gram, 0, (size_t)(few * few) * sizeof *gram);
    for (int64_t first = 0; first < many; first += PANEL) {
        int64_t width = min64(PANEL, many - first);
        if (m <= n) { /* panel: [m, width] */
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < width; j++) panel[i * width + j] = a[i * n + first + j];
            cblas_dsyrk(CblasColMajor, CblasLower, CblasTrans, (blasint)few, (blasint)width, 1, panel, (blasint)width, 1, gram,
                        (blasint)few);
        } else { /* [width, n] */
            for (int64_t i = 0; i < width * n; i++) panel[i] = a[first * n + i];
            cblas_dsyrk(CblasColMajor, CblasLower, CblasNoTrans, (blasint)few, (blasint)width, 1, panel, (blasint)few, 1, gram,
                        (blasint)few);
        }
    }
    free(panel);
    return true;
}

/* Fills d from the leading eigenpairs of the Gram matrix; vectors: [rank, short]. */
static void svd_complete(svd *d, const float *a, const double *values, const double *vectors) {
    int64_t m = d->m, n = d->n, rank = d->rank, few = min64(m, n);
    double kept = 0, least = values[0] > 0 ? values[0] * (double)few * 0x1p-52 : 0;
    for (int64_t k = 0; k < rank; k++) {
        d->s[k] = values[k] > least ? (float)sqrt(values[k]) : 0;
        kept += values[k] > least ? values[k] : 0;
    }
    d->error = d->norm > 0 ? sqrt(fmax(0, 1 - kept / (d->norm * d->norm))) : 0;
    if (m <= n) {
        for (int64_t i = 0; i < m; i++)
            for (int64_t k = 0; k < rank; k++) d->u[i * rank + k] = (float)vectors[k * few + i];
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)rank, (blasint)n, (blasint)m, 1, d->u, (blasint)rank, a, (blasint)n,
                    0, d->vt, (blasint)n);
        for (int64_t k = 0; k < rank; k++)
            for (int64_t j = 0; j < n; j++) d->vt[k * n + j] = d->s[k] > 0 ? d->vt[k * n + j] / d->s[k] : 0;
    } else {
        for (int64_t i = 0; i < rank * n; i++) d->vt[i] = (float)vectors[i];
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)m, (blasint)rank, (blasint)n, 1, a, (blasint)n, d->vt, (blasint)n, 0,
                    d->u, (blasint)rank);
        for (int64_t i = 0; i < m; i++)
            for (int64_t k = 0; k < rank; k++) d->u[i * rank + k] = d->s[k] > 0 ? d->u[i * rank + k] / d->s[k] : 0;
    }
}

bool svd_matrix(const float *a, int64_t m, int64_t n, int64_t most, svd *out, error *err) {
    memset(out, 0, sizeof *out);
    if (!check("a matrix", a, m, n, err)) return false;
    int64_t few = min64(m, n), rank = most > 0 ? min64(most, few) : few;
    double *gram = memory_try_aligned((size_t)(few * few) * sizeof *gram), *values = memory_try_aligned((size_t)rank * sizeof *values);
    double *vectors = memory_try_aligned((size_t)(rank * few) * sizeof *vectors), trace = 0;
    bool ok = (gram && values && vectors) || out_of_memory(err);
    ok = ok && gram_make(a, m, n, gram, err);
    for (int64_t i = 0; ok && i < few; i++) trace += gram[i * few + i];
    ok = ok && eigen_leading(gram, few, rank, values, vectors, err) && svd_allocate(out, m, n, rank, err);
    if (ok) {
        out->norm = sqrt(trace);
        svd_complete(out, a, values, vectors);
    }
    free(gram);
    free(values);
    free(vectors);
    return ok;
}

/* ---- Of a product ---- */

static double *doubled(const float *x, int64_t count) {
    double *y = memory_try_aligned((size_t)count * sizeof *y);
    for (int64_t i = 0; y && i < count; i++) y[i] = x[i];
    return y;
}

/* out (float, [rows, columns]) = a (double, [rows, inner]) b (double, [inner, columns]), by rows. Strides are those between rows. */
static bool multiply(const double *a, int64_t a_stride, const double *b, int64_t b_stride, int64_t rows, int64_t inner, int64_t columns,
                     float *out, error *err) {
    double *product = memory_try_aligned((size_t)(rows * columns) * sizeof *product);
    if (!product) return out_of_memory(err);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)rows, (blasint)columns, (blasint)inner, 1, a, (blasint)a_stride, b,
                (blasint)b_stride, 0, product, (blasint)columns);
    for (int64_t i = 0; i < rows * columns; i++) out[i] = (float)product[i];
    free(product);
    return true;
}

/* up = q1 r1 with q1 [m, k1], r1 [k1, k]; down = l2 q2 with l2 [k, k2], q2 [k2, n]; core = r1 l2, [k1, k2] */
typedef struct factored {
    double *q1, *r1, *l2, *q2, *core;
    int64_t k1, k2;
} factored;

static void factored_free(factored *f) {
    free(f->q1);
    free(f->r1);
    free(f->l2);
    free(f->q2);
    free(f->core);
}

static bool factored_make(factored *f, const float *up, const float *down, int64_t m, int64_t k, int64_t n, error *err) {
    f->k1 = min64(m, k), f->k2 = min64(k, n);
    f->q1 = doubled(up, m * k), f->q2 = doubled(down, k * n);
    f->r1 = memory_try_aligned((size_t)(f->k1 * k) * sizeof *f->r1);
    f->l2 = memory_try_aligned((size_t)(k * f->k2) * sizeof *f->l2);
    f->core = memory_try_aligned((size_t)(f->k1 * f->k2) * sizeof *f->core);
    if (!f->q1 || !f->q2 || !f->r1 || !f->l2 || !f->core) return out_of_memory(err);
    if (!qr_rows(f->q1, m, k, f->r1, err) || !lq_rows(f->q2, k, n, f->l2, err)) return false;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)f->k1, (blasint)f->k2, (blasint)k, 1, f->r1, (blasint)k, f->l2,
                (blasint)f->k2, 0, f->core, (blasint)f->k2);
    return true;
}

bool svd_product(const float *up, const float *down, int64_t m, int64_t k, int64_t n, int64_t most, svd *out, error *err) {
    memset(out, 0, sizeof *out);
    if (!check("a factor", up, m, k, err) || !check("a factor", down, k, n, err)) return false;
    factored f = {0};
    bool ok = factored_make(&f, up, down, m, k, n, err);
    int64_t count = min64(f.k1, f.k2), rank = most > 0 ? min64(most, count) : count;
    double *u = NULL, *s = NULL, *vt = NULL, all = 0, kept = 0;
    if (ok) {
        u = memory_try_aligned((size_t)(f.k1 * count) * sizeof *u), s = memory_try_aligned((size_t)count * sizeof *s);
        vt = memory_try_aligned((size_t)(count * f.k2) * sizeof *vt);
        ok = (u && s && vt) || out_of_memory(err);
    }
    ok = ok && svd_rows(f.core, f.k1, f.k2, u, s, vt, err) && svd_allocate(out, m, n, rank, err);
    if (ok) {
        for (int64_t i = count; i-- > 0;) all += s[i] * s[i], kept += i < rank ? s[i] * s[i] : 0;
        for (int64_t i = 0; i < rank; i++) out->s[i] = (float)s[i];
        out->norm = sqrt(all), out->error = all > 0 ? sqrt(fmax(0, (all - kept) / all)) : 0;
        ok = multiply(f.q1, k, u, count, m, f.k1, rank, out->u, err) && multiply(vt, f.k2, f.q2, n, rank, f.k2, n, out->vt, err);
        if (!ok) svd_free(out);
    }
    factored_free(&f);
    free(u);
    free(s);
    free(vt);
    return ok;
}
