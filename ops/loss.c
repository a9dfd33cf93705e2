/* Mean squared error, the objective of noise prediction (Ho et al. 2020, L_simple). */
#include "ops/kernel.h"
#include "ops/op.h"

enum { I_COUNT };

static const op MSE, MSE_GRAD;

tensor *op_mse(tape *t, tensor *prediction, tensor *target) {
    if (!prediction || !target) return NULL;
    char ps[64], ts[64];
    if (tensor_count(prediction) != tensor_count(target) || target->type != DTYPE_F32)
        return tape_fail(t, "loss: prediction %s and target %s differ", tensor_shape_text(prediction, ps), tensor_shape_text(target, ts));
    tensor *loss = tape_temporary(t, DTYPE_F32, 1, (int64_t[]){1});
    tape_append(t, &MSE, (tensor *[]){prediction, target}, 2, &loss, 1)->i[I_COUNT] = tensor_count(target);
    return loss;
}

/* dx = seed * 2 (x - y) / count */
static void backward(tape *t, const record *r) {
    tensor *x = r->in[0], *dx = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    tape_append(t, &MSE_GRAD, (tensor *[]){x, r->in[1], tape_get_grad(r->out[0])}, 3, &dx, 1)->i[I_COUNT] = r->i[I_COUNT];
    grad_add(t, x, dx);
}

/* ---- CPU ---- */

static void mse_cpu(const record *r, const device *d) {
    (void)d;
    const float *x = r->in[0]->cpu, *y = r->in[1]->cpu;
    double sum = 0;
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) sum += (double)((x[i] - y[i]) * (x[i] - y[i]));
    *(float *)r->out[0]->cpu = (float)(sum / (double)r->i[I_COUNT]);
}

static void mse_grad_cpu(const record *r, const device *d) {
    (void)d;
    const float *x = r->in[0]->cpu, *y = r->in[1]->cpu;
    float *dx = r->out[0]->cpu, scale = *(const float *)r->in[2]->cpu * 2.0f / (float)r->i[I_COUNT];
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) dx[i] = scale * (x[i] - y[i]);
}

/* ---- Vulkan ---- */

enum { THREADS = 256, ALONE = 1 << 16 /* elements that one workgroup sums: a second dispatch would take longer */, MOST_PARTS = 256 };

static int64_t parts_of(const record *r) {
    int64_t parts = r->i[I_COUNT] <= ALONE ? 1 : kernel_groups(r->i[I_COUNT], 16 * THREADS);
    return parts > MOST_PARTS ? MOST_PARTS : parts;
}

static size_t vulkan_scratch(const record *r, const device *d) {
    return d->gpu && parts_of(r) > 1 ? (size_t)parts_of(r) * sizeof(float) : 0;
}

static void mse_vulkan(const record *r, gpu_recording *rec) {
    int64_t parts = parts_of(r), step = kernel_step(r->i[I_COUNT]);
    kernel_call k = kernel_named("mse");
    kernel_read_typed(&k, r->in[0]);
    kernel_read_typed(&k, r->in[1]);
    kernel_write(&k, parts > 1 ? r->scratch : r->out[0]);
    kernel_constant(&k, THREADS);
    kernel_constant(&k, step);
    kernel_push(&k, r->i[I_COUNT] / step);
    kernel_push_float(&k, 1.0f / (float)r->i[I_COUNT]);
    kernel_run(&k, rec, parts, 1, 1, 0);
    if (parts == 1) return;
    k = kernel_named("sum");
    kernel_read(&k, r->scratch);
    kernel_write(&k, r->out[0]);
    kernel_constant(&k, THREADS);
    kernel_push(&k, parts);
    kernel_run(&k, rec, 1, 1, 1, 0);
}

static void mse_grad_vulkan(const record *r, gpu_recording *rec) {
    int64_t step = kernel_step(r->i[I_COUNT]);
    kernel_call k = kernel_named("mse_backward");
    kernel_read_typed(&k, r->in[0]);
    kernel_read_typed(&k, r->in[1]);
    kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[2]);
    kernel_constant(&k, step);
    kernel_push(&k, r->i[I_COUNT] / step);
    kernel_push_float(&k, 2.0f / (float)r->i[I_COUNT]);
    kernel_run_over(&k, rec, r->i[I_COUNT] / step);
}

static const op MSE = {
    .name = "mse", .backward = backward, .scratch = vulkan_scratch, .run_cpu = mse_cpu, .run_vulkan = mse_vulkan, .in_place = -1};
static const op MSE_GRAD = {.name = "mse_grad", .run_cpu = mse_grad_cpu, .run_vulkan = mse_grad_vulkan, .in_place = -1};
const op *const OP_MSE = &MSE, *const OP_MSE_GRAD = &MSE_GRAD;
