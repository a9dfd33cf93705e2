/* Orthogonal matrices from free parameters (OFT, BOFT; formats.md 3.8): per block b of [blocks, n, n]

   Q = b - b^T, scaled by limit / |Q| (over all blocks together) where that is below 1, R = (I + Q) (I - Q)^-1

   With M = (I - Q)^-1 = (R + I) / 2 the gradient with respect to Q is 2 M^T dR M^T = (R + I)^T dR (R + I)^T / 2, and db = dQ - dQ^T. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { I_BLOCKS, I_SIZE, I_ACCUMULATE };

enum { SUMS = 64 /* floats in front of the matrices on Vulkan: square of the norm, gradient along Q */ };

static const op CAYLEY, CAYLEY_GRAD;

tensor *op_cayley(tape *t, tensor *b, float limit) {
    if (!b) return NULL;
    char shape[64];
    int64_t n = tensor_columns(b);
    if (b->rank < 3 || b->dim[b->rank - 2] != n)
        return tape_fail(t, "Cayley transform: %s holds no square blocks", tensor_shape_text(b, shape));
    tensor *y = tape_temporary(t, DTYPE_F32, b->rank, b->dim);
    record *r = tape_append(t, &CAYLEY, &b, 1, &y, 1);
    r->i[I_BLOCKS] = tensor_count(b) / (n * n), r->i[I_SIZE] = n;
    r->f[0] = limit;
    return y;
}

static void backward(tape *t, const record *r) {
    tensor *b = r->in[0];
    bool accumulate;
    tensor *sum = grad_sum_begin(t, b, &accumulate);
    record *d = tape_append(t, &CAYLEY_GRAD, (tensor *[]){b, r->out[0], tape_get_grad(r->out[0])}, 3, &sum, 1);
    memcpy(d->i, r->i, sizeof r->i);
    d->i[I_ACCUMULATE] = accumulate;
    d->f[0] = r->f[0];
    grad_sum_done(t, b, sum);
}

/* ---- CPU ---- */

/* Sum over all blocks of (b - b^T)^2. */
static double square_norm(const float *b, int64_t blocks, int64_t n) {
    double sum = 0;
    for (int64_t g = 0; g < blocks; g++, b += n * n)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < i; j++) {
                double q = (double)b[i * n + j] - (double)b[j * n + i];
                sum += 2 * q * q;
            }
    return sum;
}

/* What Q is scaled with. */
static double shrink(const record *r, const float *b, double *norm) {
    *norm = r->f[0] > 0 ? sqrt(square_norm(b, r->i[I_BLOCKS], r->i[I_SIZE])) : 0;
    return *norm > (double)r->f[0] ? (double)r->f[0] / *norm : 1;
}

void cayley_invert(double *m, int64_t n) {
    for (int64_t p = 0; p < n; p++) {
        double pivot = 1 / m[p * n + p];
        m[p * n + p] = 1;
        for (int64_t j = 0; j < n; j++) m[p * n + j] *= pivot;
        for (int64_t i = 0; i < n; i++) {
            if (i == p) continue;
            double factor = m[i * n + p];
            m[i * n + p] = 0;
            for (int64_t j = 0; j < n; j++) m[i * n + j] -= factor * m[p * n + j];
        }
    }
}

/* One matrix of doubles per block forward, two backward. On Vulkan they are floats, behind a few sums. */
static size_t scratch(const record *r, const device *d) {
    size_t matrices = (size_t)(r->i[I_BLOCKS] * r->i[I_SIZE] * r->i[I_SIZE]) * (r->op == &CAYLEY ? 1 : 2);
    return d->gpu ? (matrices + SUMS) * sizeof(float) : matrices * sizeof(double);
}

static void cayley_cpu(const record *r, const device *d) {
    (void)d;
    int64_t n = r->i[I_SIZE], size = n * n;
    const float *b = r->in[0]->cpu;
    float *out = r->out[0]->cpu;
    double *work = r->scratch->cpu, norm, factor = shrink(r, b, &norm);
#pragma omp parallel for schedule(static) if (r->i[I_BLOCKS] * size * n > OP_SMALL)
    for (int64_t g = 0; g < r->i[I_BLOCKS]; g++) {
        const float *block = b + g * size;
        double *m = work + g * size;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) m[i * n + j] = (i == j) - factor * ((double)block[i * n + j] - (double)block[j * n + i]);
        cayley_invert(m, n);
        for (int64_t i = 0; i < size; i++) out[g * size + i] = (float)(2 * m[i] - (i % (n + 1) == 0));
    }
}

/* q := dQ = (R + I)^T dR (R + I)^T / 2, made antisymmetric: what reaches b above the diagonal, and its negative below. */
static void block_grad(const float *rotation, const float *grad, double *product, double *q, int64_t n) {
    memset(product, 0, (size_t)(n * n) * sizeof *product);
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < n; i++) {
            double f = (double)rotation[k * n + i] + (k == i);
            for (int64_t j = 0; j < n; j++) product[i * n + j] += f * (double)grad[k * n + j];
        }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t k = 0; k < n; k++) sum += product[i * n + k] * ((double)rotation[j * n + k] + (k == j));
            q[i * n + j] = sum / 2;
        }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            q[i * n + j] -= q[j * n + i];
            q[j * n + i] = -q[i * n + j];
        }
}

static void cayley_grad_cpu(const record *r, const device *d) {
    (void)d;
    int64_t n = r->i[I_SIZE], size = n * n, count = r->i[I_BLOCKS] * size;
    const float *b = r->in[0]->cpu, *rotation = r->in[1]->cpu, *grad = r->in[2]->cpu;
    float *out = r->out[0]->cpu;
    double *q = r->scratch->cpu, norm, factor = shrink(r, b, &norm), along = 0;
#pragma omp parallel for schedule(static) if (count * n > OP_SMALL)
    for (int64_t g = 0; g < r->i[I_BLOCKS]; g++) block_grad(rotation + g * size, grad + g * size, q + count + g * size, q + g * size, n);
    /* The norm's own gradient takes away what points along Q. b holds Q only up to its antisymmetric part. */
    for (int64_t at = 0; at < count && factor < 1; at++) {
        int64_t g = at / size * size, i = at % size / n, j = at % n;
        along += q[at] * ((double)b[g + i * n + j] - (double)b[g + j * n + i]) / 2;
    }
    for (int64_t at = 0; at < count; at++) {
        int64_t g = at / size * size, i = at % size / n, j = at % n;
        double direction = (double)b[g + i * n + j] - (double)b[g + j * n + i];
        double value = factor < 1 ? factor * (q[at] - 2 * direction * along / (norm * norm)) : q[at];
        out[at] = (r->i[I_ACCUMULATE] ? out[at] : 0) + (float)value;
    }
}

/* ---- Vulkan ---- */

static int64_t count_of(const record *r) { return r->i[I_BLOCKS] * r->i[I_SIZE] * r->i[I_SIZE]; }

static void push_sizes(kernel_call *k, const record *r) {
    kernel_push(k, r->i[I_BLOCKS]);
    kernel_push(k, r->i[I_SIZE]);
    kernel_push_float(k, r->f[0]);
}

/* The norm of Q, or (grad) what points along Q, into the scratch memory. */
static void sum_vulkan(const record *r, gpu_recording *rec, bool grad) {
    if (!(r->f[0] > 0)) return;
    kernel_call k = kernel_named("cayley_sum");
    kernel_read(&k, r->in[0]);
    kernel_write(&k, r->scratch);
    kernel_constant(&k, grad);
    push_sizes(&k, r);
    kernel_run(&k, rec, 1, 1, 1, 0);
}

static void cayley_vulkan(const record *r, gpu_recording *rec) {
    sum_vulkan(r, rec, false);
    kernel_call k = kernel_named("cayley");
    kernel_read(&k, r->in[0]);
    kernel_write(&k, r->out[0]);
    kernel_write(&k, r->scratch);
    push_sizes(&k, r);
    kernel_run_groups(&k, rec, r->i[I_BLOCKS]);
}

static void cayley_grad_vulkan(const record *r, gpu_recording *rec) {
    sum_vulkan(r, rec, false);
    kernel_call k = kernel_named("cayley_backward");
    kernel_read(&k, r->in[1]);
    kernel_read(&k, r->in[2]);
    kernel_write(&k, r->scratch);
    push_sizes(&k, r);
    kernel_run_groups(&k, rec, r->i[I_BLOCKS]);

    sum_vulkan(r, rec, true);
    k = kernel_named("cayley_finish");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->scratch);
    kernel_write(&k, r->out[0]);
    push_sizes(&k, r);
    kernel_push(&k, r->i[I_ACCUMULATE]);
    kernel_run_over(&k, rec, count_of(r));
}

static const op CAYLEY = {
    .name = "cayley", .backward = backward, .scratch = scratch, .run_cpu = cayley_cpu, .run_vulkan = cayley_vulkan, .in_place = -1};
static const op CAYLEY_GRAD = {
    .name = "cayley_grad", .scratch = scratch, .run_cpu = cayley_grad_cpu, .run_vulkan = cayley_grad_vulkan, .in_place = -1};
const op *const OP_CAYLEY = &CAYLEY, *const OP_CAYLEY_GRAD = &CAYLEY_GRAD;
