#include "ops/op.h"

#include <cblas.h>
#include <string.h>

void grad_add(tape *t, tensor *x, tensor *g) {
    if (!x || !x->needs_grad || !g) return;
    tensor *so_far = tape_get_grad(x);
    if (x->home == TENSOR_PARAMETER)
        op_add_into(t, so_far, g);
    else
        tape_set_grad(x, so_far ? op_add(t, so_far, g) : g);
}

tensor *grad_sum_begin(tape *t, tensor *w, bool *accumulate) {
    *accumulate = w->home == TENSOR_PARAMETER;
    return *accumulate ? w->grad : tape_temporary(t, DTYPE_F32, w->rank, w->dim);
}

void grad_sum_done(tape *t, tensor *w, tensor *sum) {
    if (w->home != TENSOR_PARAMETER) grad_add(t, w, sum);
}

narrowing narrow_result(const record *r, const device *d) {
    (void)r, (void)d;
    return (narrowing){.out = 1};
}

void blas_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n,
                (blasint)k, alpha, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

enum { PIECE = 1 << 14 };

void cpu_expand(float *out, const void *in, dtype type, int64_t n) {
    const char *bytes = in;
    size_t size = dtype_size(type);
#pragma omp parallel for schedule(static) if (n > PIECE)
    for (int64_t at = 0; at < n; at += PIECE)
        dtype_to_f32(out + at, bytes + (size_t)at * size, type, (size_t)(n - at < PIECE ? n - at : PIECE));
}

void cpu_copy(float *out, const float *in, int64_t n) {
    if (out == in) return;
#pragma omp parallel for schedule(static) if (n > PIECE)
    for (int64_t at = 0; at < n; at += PIECE) memcpy(out + at, in + at, (size_t)(n - at < PIECE ? n - at : PIECE) * sizeof *out);
}
