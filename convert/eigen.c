#include "convert/eigen.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* LAPACK's own interface. Behind the arguments come the lengths of the characters, as gfortran wants them. */
void dsyevr_(const char *job, const char *range, const char *triangle, const int *n, double *a, const int *lda, const double *low,
             const double *high, const int *first, const int *last, const double *tolerance, int *found, double *values, double *vectors,
             const int *ldz, int *support, double *work, const int *work_size, int *int_work, const int *int_work_size, int *info, size_t,
             size_t, size_t);
void dgesdd_(const char *job, const int *m, const int *n, double *a, const int *lda, double *s, double *u, const int *ldu, double *vt,
             const int *ldvt, double *work, const int *work_size, int *int_work, int *info, size_t);
void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *work_size, int *info);
void dgelqf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *work_size, int *info);
void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau, double *work, const int *work_size,
             int *info);
void dorglq_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau, double *work, const int *work_size,
             int *info);

static bool done(const char *routine, int info, error *err) {
    return info == 0 || error_set(err, "a decomposition did not converge (LAPACK's %s: %d)", routine, info);
}

static bool out_of_memory(error *err) { return error_set(err, "not enough memory for a decomposition"); }

bool eigen_leading(double *a, int64_t n, int64_t count, double *values, double *vectors, error *err) {
    int size = (int)n, first = size - (int)count + 1, found = 0, info, query = -1, int_size = 0;
    double none = 0, best = 0;
    int *support = memory_try_aligned((size_t)n * 2 * sizeof *support);
    double *ascending = memory_try_aligned((size_t)n * sizeof *ascending);
    if (!support || !ascending) {
        free(support);
        free(ascending);
        return out_of_memory(err);
    }
    dsyevr_("V", "I", "L", &size, a, &size, &none, &none, &first, &size, &none, &found, ascending, vectors, &size, support, &best, &query,
            &int_size, &query, &info, 1, 1, 1);
    int work_size = (int)best;
    double *work = memory_try_aligned((size_t)work_size * sizeof *work);
    int *int_work = memory_try_aligned((size_t)int_size * sizeof *int_work);
    bool ok = (work && int_work) || out_of_memory(err);
    if (ok) {
        dsyevr_("V", "I", "L", &size, a, &size, &none, &none, &first, &size, &none, &found, ascending, vectors, &size, support, work,
                &work_size, int_work, &int_size, &info, 1, 1, 1);
        ok = done("dsyevr", info, err);
    }
    for (int64_t i = 0; ok && i < count; i++) values[i] = fmax(0, ascending[count - 1 - i]);
    for (int64_t i = 0; ok && i < count / 2; i++) { /* ascending to descending */
        double *one = vectors + i * n, *other = vectors + (count - 1 - i) * n;
        for (int64_t j = 0; j < n; j++) {
            double kept = one[j];
            one[j] = other[j], other[j] = kept;
        }
    }
    free(work);
    free(int_work);
    free(support);
    free(ascending);
    return ok;
}

/* Scratch space for the reflections of a decomposition of an [x, y] matrix: generous enough for blocked code of any LAPACK. */
typedef struct reflections {
    double *tau, *work;
    int work_size;
} reflections;

static bool reflections_open(reflections *s, int64_t x, int64_t y, error *err) {
    int64_t longer = x > y ? x : y, shorter = x + y - longer;
    s->work_size = (int)(longer * 64);
    s->tau = memory_try_aligned((size_t)shorter * sizeof *s->tau);
    s->work = memory_try_aligned((size_t)s->work_size * sizeof *s->work);
    if (s->tau && s->work) return true;
    free(s->tau);
    free(s->work);
    return out_of_memory(err);
}

static void reflections_close(reflections *s) {
    free(s->tau);
    free(s->work);
}

bool qr_rows(double *a, int64_t m, int64_t k, double *r, error *err) {
    int rows = (int)k, columns = (int)m, least = rows < columns ? rows : columns, info; /* LAPACK sees the transpose: its LQ */
    reflections s;
    if (!reflections_open(&s, m, k, err)) return false;
    dgelqf_(&rows, &columns, a, &rows, s.tau, s.work, &s.work_size, &info);
    bool ok = done("dgelqf", info, err);
    for (int64_t i = 0; ok && i < least; i++)
        for (int64_t j = 0; j < k; j++) r[i * k + j] = j < i ? 0 : a[i * k + j];
    if (ok) dorglq_(&least, &columns, &least, a, &rows, s.tau, s.work, &s.work_size, &info);
    ok = ok && done("dorglq", info, err);
    reflections_close(&s);
    return ok;
}

bool lq_rows(double *a, int64_t k, int64_t n, double *l, error *err) {
    int rows = (int)n, columns = (int)k, least = rows < columns ? rows : columns, info;
    reflections s;
    if (!reflections_open(&s, k, n, err)) return false;
    dgeqrf_(&rows, &columns, a, &rows, s.tau, s.work, &s.work_size, &info);
    bool ok = done("dgeqrf", info, err);
    for (int64_t i = 0; ok && i < k; i++)
        for (int64_t j = 0; j < least; j++) l[i * least + j] = j > i ? 0 : a[i * n + j];
    if (ok) dorgqr_(&rows, &least, &least, a, &rows, s.tau, s.work, &s.work_size, &info);
    ok = ok && done("dorgqr", info, err);
    reflections_close(&s);
    return ok;
}

bool svd_rows(double *a, int64_t m, int64_t n, double *u, double *s, double *vt, error *err) {
    int rows = (int)n, columns = (int)m, least = rows < columns ? rows : columns, info, query = -1; /* LAPACK's u is our vt */
    double best = 0;
    int *int_work = memory_try_aligned((size_t)least * 8 * sizeof *int_work);
    if (!int_work) return out_of_memory(err);
    dgesdd_("S", &rows, &columns, a, &rows, s, vt, &rows, u, &least, &best, &query, int_work, &info, 1);
    int work_size = (int)best;
    double *work = memory_try_aligned((size_t)work_size * sizeof *work);
    bool ok = work || out_of_memory(err);
    if (ok) {
        dgesdd_("S", &rows, &columns, a, &rows, s, vt, &rows, u, &least, work, &work_size, int_work, &info, 1);
        ok = done("dgesdd", info, err);
    }
    free(work);
    free(int_work);
    return ok;
}
