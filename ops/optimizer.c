/* What happens to adapter parameters after the backward pass: the norm of all gradients, and AdamW. All fp32. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <math.h>

enum { I_COUNT };
enum { LEARNING_RATE, BETA1, BETA2, EPS, WEIGHT_DECAY, CORRECTION1, CORRECTION2, INVERSE_SCALE };

static const op SQUARE_SUM, GRAD_NORM, ADAMW;

/* Sums are chained: each record adds its gradient's squares to the sum so far. */
tensor *op_grad_norm(tape *t, tensor *const *grads, int count, tensor *control) {
    tensor *sum = NULL;
    for (int i = 0; i < count; i++) {
        tensor *next = tape_temporary(t, DTYPE_F32, 1, (int64_t[]){1});
        tape_append(t, &SQUARE_SUM, (tensor *[]){grads[i], sum}, 2, &next, 1)->i[I_COUNT] = tensor_count(grads[i]);
        sum = next;
    }
    if (!sum) return tape_fail(t, "gradient norm: there is nothing to train");
    tensor *norm = tape_temporary(t, DTYPE_F32, 1, (int64_t[]){1});
    tape_append(t, &GRAD_NORM, (tensor *[]){sum, control}, 2, &norm, 1);
    tape_keep(norm);
    return norm;
}

void op_adamw(tape *t, tensor *param, tensor *grad, tensor *m, tensor *v, tensor *control, tensor *norm, float max_norm) {
    if (!param || !grad || !m || !v || !control || !norm) return;
    record *r = tape_append(t, &ADAMW, (tensor *[]){control, norm}, 2, (tensor *[]){param, m, v}, 3);
    /* The gradient is read and set to zero. */
    r->in[2] = grad;
    r->i[I_COUNT] = tensor_count(param);
    r->f[0] = max_norm;
}

/* ---- CPU ---- */

static void square_sum_cpu(const record *r, const device *d) {
    (void)d;
    const float *g = r->in[0]->cpu;
    double sum = r->in[1] ? (double)*(const float *)r->in[1]->cpu : 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) sum += (double)g[i] * (double)g[i];
    *(float *)r->out[0]->cpu = (float)sum;
}

static void grad_norm_cpu(const record *r, const device *d) {
    (void)d;
    const float *control = r->in[1]->cpu;
    *(float *)r->out[0]->cpu = sqrtf(*(const float *)r->in[0]->cpu) * control[INVERSE_SCALE];
}

OP_HOT static void adamw_update(float *p, float *g, float *m, float *v, int64_t n, const float *control, float scale) {
    float rate = control[LEARNING_RATE], beta1 = control[BETA1], beta2 = control[BETA2];
    float step = rate / control[CORRECTION1], root = 1.0f / sqrtf(control[CORRECTION2]), decay = 1.0f - rate * control[WEIGHT_DECAY];
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * scale;
        m[i] = beta1 * m[i] + (1.0f - beta1) * grad;
        v[i] = beta2 * v[i] + (1.0f - beta2) * grad * grad;
        p[i] = p[i] * decay - step * m[i] / (sqrtf(v[i]) * root + control[EPS]);
    }
}

static void adamw_cpu(const record *r, const device *d) {
    (void)d;
    const float *control = r->in[0]->cpu;
    float norm = *(const float *)r->in[1]->cpu, scale = control[INVERSE_SCALE], *g = r->in[2]->cpu;
    if (r->f[0] > 0 && norm > r->f[0]) scale *= r->f[0] / (norm + 1e-6f);
    if (isfinite(norm)) adamw_update(r->out[0]->cpu, g, r->out[1]->cpu, r->out[2]->cpu, r->i[I_COUNT], control, scale);
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) g[i] = 0;
}

/* ---- Vulkan ---- */

enum { THREADS = 256, MOST_PARTS = 64 };

/* Small gradients are summed by one workgroup at once, large ones in parts. */
static int64_t parts_of(const record *r) {
    int64_t parts = kernel_groups(r->i[I_COUNT], 64 * THREADS);
    return parts > MOST_PARTS ? MOST_PARTS : parts;
}

static size_t square_sum_scratch(const record *r, const device *d) {
    return d->gpu && parts_of(r) > 1 ? (size_t)parts_of(r) * sizeof(float) : 0;
}

static void square_sum_vulkan(const record *r, gpu_recording *rec) {
    const tensor *sum = r->scratch ? r->scratch : r->out[0];
    kernel_call k = kernel_named("square_sum");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1] ? r->in[1] : r->in[0]);
    kernel_write(&k, sum);
    kernel_constant(&k, THREADS);
    kernel_push(&k, r->i[I_COUNT]);
    kernel_push(&k, r->in[1] != NULL);
    kernel_run(&k, rec, parts_of(r), 1, 1, 0);
    if (!r->scratch) return;
    k = kernel_named("sum");
    kernel_read(&k, r->scratch);
    kernel_write(&k, r->out[0]);
    kernel_constant(&k, MOST_PARTS);
    kernel_push(&k, parts_of(r));
    kernel_run(&k, rec, 1, 1, 1, 0);
}

static void grad_norm_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("grad_norm");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    kernel_write(&k, r->out[0]);
    kernel_run(&k, rec, 1, 1, 1, 0);
}

static void adamw_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("adamw");
    kernel_write(&k, r->out[0]);
    kernel_write(&k, r->in[2]);
    kernel_write(&k, r->out[1]);
    kernel_write(&k, r->out[2]);
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    kernel_push(&k, r->i[I_COUNT]);
    kernel_push_float(&k, r->f[0]);
    kernel_run_over(&k, rec, r->i[I_COUNT]);
}

static const op SQUARE_SUM = {
    .name = "square_sum", .scratch = square_sum_scratch, .run_cpu = square_sum_cpu, .run_vulkan = square_sum_vulkan, .in_place = -1};
static const op GRAD_NORM = {.name = "grad_norm", .run_cpu = grad_norm_cpu, .run_vulkan = grad_norm_vulkan, .in_place = -1};
static const op ADAMW = {.name = "adamw", .run_cpu = adamw_cpu, .run_vulkan = adamw_vulkan, .in_place = -1};
const op *const OP_SQUARE_SUM = &SQUARE_SUM, *const OP_GRAD_NORM = &GRAD_NORM, *const OP_ADAMW = &ADAMW;
