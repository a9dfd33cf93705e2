/* Products of small fp32 matrices from which adapters make a weight: C[t] = scale A[t] B[t], each one matrix or one per tap of a
   convolution. An operand that is one matrix goes with every tap; its gradient is the sum over them. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <string.h>

/* Sizes, then how far apart elements lie: A's taps, rows and columns of A as [m, k], B's of [k, n]. */
enum { I_TAPS, I_M, I_N, I_K, I_TAP_A, I_ROW_A, I_COLUMN_A, I_TAP_B, I_ROW_B, I_COLUMN_B, I_SUM /* over taps */, I_ACCUMULATE };

static const op MATMUL, FACTOR_GRAM;

static record *append(tape *t, tensor *a, tensor *b, tensor *c, const int64_t *sizes, float scale) {
    record *r = tape_append(t, &MATMUL, (tensor *[]){a, b}, 2, &c, 1);
    memcpy(r->i, sizes, sizeof r->i);
    r->f[0] = scale;
    return r;
}

tensor *op_matmul(tape *t, tensor *a, tensor *b, float scale, bool factor) {
    if (!a || !b) return NULL;
    char as[64], bs[64];
    int64_t taps_a = a->rank == 3 ? a->dim[0] : 1, taps_b = b->rank == 3 ? b->dim[0] : 1, taps = taps_a > taps_b ? taps_a : taps_b;
    int64_t k = tensor_columns(a), m = tensor_rows(a) / taps_a, n = tensor_columns(b), dim[] = {taps, m, n};
    if (a->rank < 2 || b->rank < 2 || tensor_rows(b) / taps_b != k || (taps_a != 1 && taps_a != taps) || (taps_b != 1 && taps_b != taps))
        return tape_fail(t, "product of %s and %s: they do not fit together", tensor_shape_text(a, as), tensor_shape_text(b, bs));
    tensor *c = tape_temporary(t, factor ? DTYPE_F32 : DTYPE_COUNT, taps > 1 ? 3 : 2, taps > 1 ? dim : dim + 1);
    const int64_t sizes[RECORD_INTS] = {taps, m, n, k, taps_a > 1 ? m * k : 0, k, 1, taps_b > 1 ? k * n : 0, n, 1};
    append(t, a, b, c, sizes, scale);
    return c;
}

tensor *op_gram_of_two(tape *t, tensor *a, tensor *b, bool columns, float scale) {
    int64_t n = tensor_columns(a), taps = !columns && a->rank == 3 ? a->dim[0] : 1, rows = tensor_rows(a) / taps;
    int64_t r = columns ? n : rows, k = columns ? rows : n, tap = taps > 1 ? rows * n : 0;
    tensor *g = tape_temporary(t, DTYPE_F32, 2, (int64_t[]){r, r});
    const int64_t sizes[RECORD_INTS] = {taps, r, r, k, tap, columns ? 1 : n, columns ? n : 1, tap, columns ? n : 1, columns ? 1 : n, 1};
    append(t, a, b, g, sizes, scale);
    return g;
}

tensor *op_factor_gram(tape *t, tensor *x, bool columns) {
    if (!x) return NULL;
    tensor *g = op_gram_of_two(t, x, x, columns, 1);
    record *r = tape_record(t, tape_length(t) - 1);
    r->op = &FACTOR_GRAM;
    return g;
}

/* dX = X (dG + dG^T), or (dG + dG^T) X of every tap; dG is symmetric. */
static void gram_backward(tape *t, const record *r) {
    tensor *x = r->in[0], *dg = tape_get_grad(r->out[0]);
    if (!x->needs_grad) return;
    const int64_t *i = r->i, n = i[I_N], k = i[I_K];
    bool accumulate, columns = i[I_COLUMN_A] != 1; /* of one row or column: no matter */
    tensor *sum = grad_sum_begin(t, x, &accumulate);
    const int64_t of_columns[RECORD_INTS] = {1, k, n, n, 0, n, 1, 0, n, 1, 0, accumulate};
    const int64_t of_rows[RECORD_INTS] = {i[I_TAPS], n, k, n, 0, n, 1, i[I_TAP_A], k, 1, 0, accumulate};
    append(t, columns ? x : dg, columns ? dg : x, sum, columns ? of_columns : of_rows, 2);
    grad_sum_done(t, x, sum);
}

/* dA = scale dC B^T, dB = scale A^T dC. */
static void backward(tape *t, const record *r) {
    tensor *a = r->in[0], *b = r->in[1], *dc = tape_get_grad(r->out[0]);
    const int64_t *i = r->i, taps = i[I_TAPS], m = i[I_M], n = i[I_N], k = i[I_K], tap_c = taps > 1 ? m * n : 0;
    bool accumulate;
    if (a->needs_grad) {
        tensor *sum = grad_sum_begin(t, a, &accumulate);
        const int64_t sizes[RECORD_INTS] = {taps, m, k, n, tap_c, n, 1, i[I_TAP_B], i[I_COLUMN_B], i[I_ROW_B], !i[I_TAP_A], accumulate};
        append(t, dc, b, sum, sizes, r->f[0]);
        grad_sum_done(t, a, sum);
    }
    if (b->needs_grad) {
        tensor *sum = grad_sum_begin(t, b, &accumulate);
        const int64_t sizes[RECORD_INTS] = {taps, k, n, m, i[I_TAP_A], i[I_COLUMN_A], i[I_ROW_A], tap_c, n, 1, !i[I_TAP_B], accumulate};
        append(t, a, dc, sum, sizes, r->f[0]);
        grad_sum_done(t, b, sum);
    }
}

static double flops(const record *r) { return 2.0 * (double)(r->i[I_TAPS] * r->i[I_M]) * (double)(r->i[I_N] * r->i[I_K]); }

static void run_cpu(const record *r, const device *d) {
    (void)d;
    const int64_t *i = r->i, m = i[I_M], n = i[I_N];
    const float *a = r->in[0]->cpu, *b = r->in[1]->cpu;
    float *c = r->out[0]->cpu;
    bool transpose_a = i[I_COLUMN_A] != 1 || (i[I_ROW_A] == 1 && i[I_K] > 1),
         transpose_b = i[I_COLUMN_B] != 1 || (i[I_ROW_B] == 1 && n > 1);
    for (int64_t tap = 0; tap < i[I_TAPS]; tap++) {
        bool add = i[I_ACCUMULATE] || (i[I_SUM] && tap > 0);
        blas_gemm(transpose_a, transpose_b, m, n, i[I_K], r->f[0], a + tap * i[I_TAP_A], transpose_a ? i[I_COLUMN_A] : i[I_ROW_A],
                  b + tap * i[I_TAP_B], transpose_b ? i[I_COLUMN_B] : i[I_ROW_B], add ? 1.0f : 0.0f, i[I_SUM] ? c : c + tap * m * n, n);
    }
}

static void run_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("matmul");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    kernel_write_typed(&k, r->out[0]);
    for (int i = I_TAPS; i <= I_ACCUMULATE; i++) kernel_push(&k, r->i[i]);
    kernel_push_float(&k, r->f[0]);
    kernel_run(&k, rec, kernel_groups(r->i[I_N], 16), kernel_groups(r->i[I_M], 16), r->i[I_SUM] ? 1 : r->i[I_TAPS], flops(r));
}

static const op MATMUL = {
    .name = "matmul", .backward = backward, .flops = flops, .run_cpu = run_cpu, .run_vulkan = run_vulkan, .in_place = -1};
static const op FACTOR_GRAM = {
    .name = "factor_gram", .backward = gram_backward, .flops = flops, .run_cpu = run_cpu, .run_vulkan = run_vulkan, .in_place = -1};
const op *const OP_MATMUL = &MATMUL, *const OP_FACTOR_GRAM = &FACTOR_GRAM;
