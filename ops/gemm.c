/* C [m, n] = residual + scale * A B + bias: linear layers, 1x1 convolutions, adapter branches and all their gradients.

   A is [m, k], or [k, m] when transposed (weight gradients). B is [n, k] ("nk": a weight used forward) or [k, n] ("kn": the same weight
   used backward, or activations in a weight gradient). With `accumulate`, C itself is the residual: parameter gradients add up. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <string.h>

enum { IN_A, IN_B, IN_BIAS, IN_RESIDUAL, INPUTS };
enum { I_M, I_N, I_K, I_TRANSPOSE_A, I_KN, I_ACCUMULATE, I_GATED /* on the CPU: its output is geglu's */ };

/* fp32 elements of B expanded at a time on the CPU. */
enum { PANEL = 1 << 20 };

static const op GEMM;
extern const op *const OP_GEGLU;

static record *append(tape *t, tensor *a, tensor *b, tensor *bias, tensor *residual, tensor *c, int64_t m, int64_t n, int64_t k,
                      float scale) {
    record *r = tape_append(t, &GEMM, (tensor *[]){a, b, bias, residual}, INPUTS, (tensor *[]){c}, 1);
    r->i[I_M] = m, r->i[I_N] = n, r->i[I_K] = k;
    r->f[0] = scale;
    return r;
}

static tensor *linear(tape *t, tensor *x, tensor *w, int64_t blocks, tensor *bias, tensor *residual, float scale) {
    if (!x || !w) return NULL;
    char xs[64], ws[64];
    if (w->rank != 2 || w->dim[1] * blocks != tensor_columns(x))
        return tape_fail(t, "linear %s: input %s does not fit weight %s", w->name ? w->name : "", tensor_shape_text(x, xs),
                         tensor_shape_text(w, ws));
    int64_t dim[TENSOR_RANK], n = w->dim[0];
    for (int i = 0; i < x->rank; i++) dim[i] = x->dim[i];
    dim[x->rank - 1] = blocks * n;
    tensor *y = tape_temporary(t, DTYPE_COUNT, x->rank, dim);
    if ((bias && tensor_count(bias) != n) || (residual && tensor_count(residual) != tensor_count(y)))
        return tape_fail(t, "linear %s: bias or residual does not fit output %s", w->name ? w->name : "", tensor_shape_text(y, xs));
    append(t, x, w, bias, residual, y, tensor_rows(x) * blocks, n, w->dim[1], scale);
    return y;
}

tensor *op_linear(tape *t, tensor *x, tensor *w, tensor *bias, tensor *residual, float scale) {
    return linear(t, x, w, 1, bias, residual, scale);
}

tensor *op_linear_blocks(tape *t, tensor *x, tensor *w, int64_t blocks, tensor *residual, float scale) {
    return linear(t, x, w, blocks, NULL, residual, scale);
}

static void backward(tape *t, const record *r) {
    tensor *x = r->in[IN_A], *w = r->in[IN_B], *dy = tape_get_grad(r->out[0]);
    int64_t m = r->i[I_M], n = r->i[I_N], k = r->i[I_K];
    if (x->needs_grad) {
        tensor *dx = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
        append(t, dy, w, NULL, tape_get_grad(x), dx, m, k, n, r->f[0])->i[I_KN] = 1;
        tape_set_grad(x, dx);
    }
    if (w->needs_grad) {
        bool accumulate;
        tensor *sum = grad_sum_begin(t, w, &accumulate);
        record *dw = append(t, dy, x, NULL, NULL, sum, n, k, m, r->f[0]);
        dw->i[I_TRANSPOSE_A] = dw->i[I_KN] = 1;
        dw->i[I_ACCUMULATE] = accumulate;
        grad_sum_done(t, w, sum);
    }
    grad_add_columns(t, r->in[IN_BIAS], dy, NULL, 1);
    grad_add(t, r->in[IN_RESIDUAL], dy);
}

static double flops(const record *r) { return 2.0 * (double)r->i[I_M] * (double)r->i[I_N] * (double)r->i[I_K]; }

/* ---- CPU ---- */

static int64_t panel_rows(const record *r) {
    int64_t row = r->i[I_KN] ? r->i[I_N] : r->i[I_K], rows = r->i[I_KN] ? r->i[I_K] : r->i[I_N], most = PANEL / row;
    return most < 1 ? 1 : most < rows ? most : rows;
}

static bool uses_kernels(const record *r, const device *d) { return d->kernels && cpu_kernels_read(r->in[IN_B]); }

static cpu_gemm cpu_call(const record *r, const device *d) {
    return (cpu_gemm){.m = r->i[I_M],
                      .n = r->i[I_N],
                      .k = r->i[I_K],
                      .taps = 1,
                      .a = r->in[IN_A]->cpu,
                      .a_type = r->in[IN_A]->type,
                      .lda = r->i[I_K],
                      .b = r->in[IN_B]->cpu,
                      .b_type = r->in[IN_B]->type,
                      .packed = r->in[IN_B]->packed,
                      .kn = r->i[I_KN] != 0,
                      .scale = r->f[0],
                      .bias = r->in[IN_BIAS] ? r->in[IN_BIAS]->cpu : NULL,
                      .residual = r->in[IN_RESIDUAL] ? r->in[IN_RESIDUAL]->cpu : NULL,
                      .c = r->out[0]->cpu,
                      .c_type = r->out[0]->type,
                      .rows_per_image = r->i[I_M],
                      .gated = r->i[I_GATED] != 0,
                      .bf16 = d->bf16};
}

/* A transposed: dw += dy^T x. */
static cpu_weight_grad weight_call(const record *r, const device *d) {
    return (cpu_weight_grad){.rows = r->i[I_K],
                             .outputs = r->i[I_M],
                             .inputs = r->i[I_N],
                             .taps = 1,
                             .dy = r->in[IN_A]->cpu,
                             .x = r->in[IN_B]->cpu,
                             .dy_type = r->in[IN_A]->type,
                             .x_type = r->in[IN_B]->type,
                             .dw = r->out[0]->cpu,
                             .scale = r->f[0],
                             .bf16 = d->bf16};
}

static bool absorb(record *r, const record *reader, const device *d) {
    if (reader->op != OP_GEGLU || !d->bf16 || !uses_kernels(r, d) || r->i[I_TRANSPOSE_A] || r->i[I_KN]) return false;
    if (r->in[IN_RESIDUAL] || r->i[I_GATED] || r->i[I_N] % 64) return false;
    r->i[I_GATED] = 1;
    r->out[0] = reader->out[0];
    return true;
}

static narrowing narrow(const record *r, const device *d) {
    if (!uses_kernels(r, d)) return (narrowing){0};
    return (narrowing){.in = 1u << IN_A | 1u << IN_B, .out = r->i[I_ACCUMULATE] ? 0 : 1, .weights = r->i[I_TRANSPOSE_A] ? 0 : 1u << IN_B};
}

static gemm_call vulkan_call(const record *r);

static size_t scratch(const record *r, const device *d) {
    if (d->gpu) {
        gemm_call g = vulkan_call(r);
        return kernel_gemm_scratch(&g, d->gpu);
    }
    if (uses_kernels(r, d)) {
        cpu_gemm g = cpu_call(r, d);
        cpu_weight_grad w = weight_call(r, d);
        g.packed = false; /* another plan may have them loaded as they are */
        return r->i[I_TRANSPOSE_A] ? d->kernels->weight_grad_scratch(&w, d->threads) : d->kernels->gemm_scratch(&g, d->threads);
    }
    if (r->in[IN_B]->type == DTYPE_F32) return 0;
    return (size_t)(panel_rows(r) * (r->i[I_KN] ? r->i[I_N] : r->i[I_K])) * sizeof(float);
}

static void add_bias(float *c, const float *bias, int64_t m, int64_t n) {
#pragma omp parallel for schedule(static) if (m * n > OP_SMALL)
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * n + j] += bias[j];
}

static void run_blas(const record *r) {
    const tensor *a = r->in[IN_A], *b = r->in[IN_B];
    int64_t m = r->i[I_M], n = r->i[I_N], k = r->i[I_K], lda = r->i[I_TRANSPOSE_A] ? m : k;
    bool transposed = r->i[I_TRANSPOSE_A] != 0, kn = r->i[I_KN] != 0;
    float *c = r->out[0]->cpu, beta = r->i[I_ACCUMULATE] ? 1.0f : 0.0f;
    if (r->in[IN_RESIDUAL]) {
        cpu_copy(c, r->in[IN_RESIDUAL]->cpu, m * n);
        beta = 1;
    }
    if (b->type == DTYPE_F32) {
        blas_gemm(transposed, !kn, m, n, k, r->f[0], a->cpu, lda, b->cpu, kn ? n : k, beta, c, n);
    } else {
        float *panel = r->scratch->cpu;
        const float *left = a->cpu;
        int64_t rows = panel_rows(r), total = kn ? k : n, width = kn ? n : k;
        for (int64_t at = 0; at < total; at += rows) {
            int64_t count = total - at < rows ? total - at : rows;
            cpu_expand(panel, cpu_at(b, at * width), b->type, count * width);
            if (kn)
                blas_gemm(transposed, false, m, n, count, r->f[0], left + at, lda, panel, n, at ? 1.0f : beta, c, n);
            else
                blas_gemm(transposed, true, m, count, k, r->f[0], left, lda, panel, k, beta, c + at, n);
        }
    }
    if (r->in[IN_BIAS]) add_bias(c, r->in[IN_BIAS]->cpu, m, n);
}

static void run_cpu(const record *r, const device *d) {
    cpu_gemm g = cpu_call(r, d);
    cpu_weight_grad w = weight_call(r, d);
    if (!uses_kernels(r, d))
        run_blas(r);
    else if (r->i[I_TRANSPOSE_A]) {
        if (!r->i[I_ACCUMULATE]) memset(r->out[0]->cpu, 0, r->out[0]->bytes);
        d->kernels->weight_grad(&w, d->threads, r->scratch->cpu);
    } else
        d->kernels->gemm(&g, d->threads, r->scratch->cpu);
}

/* ---- Vulkan ---- */

static gemm_call vulkan_call(const record *r) {
    int64_t m = r->i[I_M], n = r->i[I_N], k = r->i[I_K];
    bool transposed = r->i[I_TRANSPOSE_A] != 0, kn = r->i[I_KN] != 0;
    return (gemm_call){.a = r->in[IN_A],
                       .b = r->in[IN_B],
                       .c = r->out[0],
                       .bias = r->in[IN_BIAS],
                       .residual = r->in[IN_RESIDUAL],
                       .scratch = r->scratch,
                       .a_mode = transposed ? GEMM_A_COLUMNS : GEMM_A_ROWS,
                       .b_mode = kn ? GEMM_B_KN : GEMM_B_NK,
                       .m = m,
                       .n = n,
                       .k = k,
                       .lda = transposed ? m : k,
                       .ldb = kn ? n : k,
                       .taps = 1,
                       .scale = r->f[0],
                       .accumulate = r->i[I_ACCUMULATE] != 0};
}

static void run_vulkan(const record *r, gpu_recording *rec) {
    gemm_call g = vulkan_call(r);
    kernel_gemm(rec, &g);
}

static const op GEMM = {.name = "gemm",
                        .backward = backward,
                        .scratch = scratch,
                        .flops = flops,
                        .narrow = narrow,
                        .absorb = absorb,
                        .run_cpu = run_cpu,
                        .run_vulkan = run_vulkan,
                        .in_place = IN_RESIDUAL};
const op *const OP_GEMM = &GEMM;
