/* Element by element: activations, the gated GELU of the feed-forward layers, sums; and their gradients. */
#include "ops/kernel.h"
#include "ops/op.h"

enum { I_COUNT, I_KIND };   /* activation */
enum { I_ROWS, I_COLUMNS }; /* geglu: columns of its output */
enum { PIECE = 4096 };      /* elements a thread takes at a time */

static const op ACTIVATION, ACTIVATION_GRAD, GEGLU, GEGLU_GRAD, ADD;

tensor *op_activation(tape *t, tensor *x, activation kind) {
    if (!x) return NULL;
    tensor *y = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    record *r = tape_append(t, &ACTIVATION, &x, 1, &y, 1);
    r->i[I_COUNT] = tensor_count(x), r->i[I_KIND] = kind;
    return y;
}

static void activation_backward(tape *t, const record *r) {
    tensor *x = r->in[0], *dx = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    record *d = tape_append(t, &ACTIVATION_GRAD, (tensor *[]){tape_get_grad(r->out[0]), x}, 2, &dx, 1);
    d->i[I_COUNT] = r->i[I_COUNT], d->i[I_KIND] = r->i[I_KIND];
    grad_add(t, x, dx);
}

tensor *op_geglu(tape *t, tensor *x) {
    if (!x) return NULL;
    char shape[64];
    if (tensor_columns(x) % 2) return tape_fail(t, "geglu: input %s has an odd width", tensor_shape_text(x, shape));
    int64_t dim[TENSOR_RANK];
    for (int i = 0; i < x->rank; i++) dim[i] = x->dim[i];
    dim[x->rank - 1] /= 2;
    tensor *y = tape_temporary(t, DTYPE_COUNT, x->rank, dim);
    record *r = tape_append(t, &GEGLU, &x, 1, &y, 1);
    r->i[I_ROWS] = tensor_rows(x), r->i[I_COLUMNS] = tensor_columns(y);
    return y;
}

static void geglu_backward(tape *t, const record *r) {
    tensor *x = r->in[0], *dx = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    record *d = tape_append(t, &GEGLU_GRAD, (tensor *[]){tape_get_grad(r->out[0]), x}, 2, &dx, 1);
    d->i[I_ROWS] = r->i[I_ROWS], d->i[I_COLUMNS] = r->i[I_COLUMNS];
    grad_add(t, x, dx);
}

tensor *op_add(tape *t, tensor *a, tensor *b) {
    if (!a || !b) return NULL;
    char as[64], bs[64];
    if (tensor_count(a) != tensor_count(b))
        return tape_fail(t, "add: %s and %s differ", tensor_shape_text(a, as), tensor_shape_text(b, bs));
    /* Sums of fp32 tensors (weights that are computed, and their gradients) stay so. */
    tensor *y = tape_temporary(t, a->type == DTYPE_F32 && b->type == DTYPE_F32 ? DTYPE_F32 : DTYPE_COUNT, a->rank, a->dim);
    tape_append(t, &ADD, (tensor *[]){a, b}, 2, &y, 1)->i[I_COUNT] = tensor_count(a);
    return y;
}

void op_add_into(tape *t, tensor *to, tensor *g) { tape_append(t, &ADD, (tensor *[]){to, g}, 2, &to, 1)->i[I_COUNT] = tensor_count(to); }

static void add_backward(tape *t, const record *r) {
    grad_add(t, r->in[0], tape_get_grad(r->out[0]));
    grad_add(t, r->in[1], tape_get_grad(r->out[0]));
}

/* ---- CPU ---- */

/* Elements [at, ...) of a result: computed in place, or rounded from a buffer of PIECE floats. */
static float *piece_target(const tensor *y, int64_t at, float *buffer) { return y->type == DTYPE_BF16 ? buffer : (float *)y->cpu + at; }

OP_HOT static void piece_narrow(uint16_t *y, const float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = scalar_bfloat(x[i]);
}

static void piece_store(const tensor *y, int64_t at, const float *buffer, int64_t n) {
    if (y->type == DTYPE_BF16) piece_narrow((uint16_t *)y->cpu + at, buffer, n);
}

OP_HOT static void activate(float *y, const float *x, int64_t n, activation kind) {
    if (kind == ACTIVATION_SILU)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scalar_sigmoid(x[i]);
    else if (kind == ACTIVATION_GELU)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = scalar_gelu(x[i]);
    else
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scalar_sigmoid(1.702f * x[i]);
}

/* d/dx x sigmoid(a x) = s + a x s (1 - s) */
static float gated_slope(float x, float a) {
    float s = scalar_sigmoid(a * x);
    return s * (1.0f + a * x * (1.0f - s));
}

OP_HOT static void activate_grad(float *dx, const float *dy, const float *x, int64_t n, activation kind) {
    if (kind == ACTIVATION_SILU)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * gated_slope(x[i], 1.0f);
    else if (kind == ACTIVATION_GELU)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * scalar_gelu_slope(x[i]);
    else
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * gated_slope(x[i], 1.702f);
}

static int64_t piece(int64_t count, int64_t at) { return count - at < PIECE ? count - at : PIECE; }

static void activation_cpu(const record *r, const device *d) {
    (void)d;
    const float *x = r->in[0]->cpu;
    int64_t n = r->i[I_COUNT];
#pragma omp parallel for schedule(static) if (n > PIECE)
    for (int64_t at = 0; at < n; at += PIECE) {
        float buffer[PIECE], *y = piece_target(r->out[0], at, buffer);
        activate(y, x + at, piece(n, at), (activation)r->i[I_KIND]);
        piece_store(r->out[0], at, buffer, piece(n, at));
    }
}

static void activation_grad_cpu(const record *r, const device *d) {
    (void)d;
    const float *dy = r->in[0]->cpu, *x = r->in[1]->cpu;
    int64_t n = r->i[I_COUNT];
#pragma omp parallel for schedule(static) if (n > PIECE)
    for (int64_t at = 0; at < n; at += PIECE) {
        float buffer[PIECE], *dx = piece_target(r->out[0], at, buffer);
        activate_grad(dx, dy + at, x + at, piece(n, at), (activation)r->i[I_KIND]);
        piece_store(r->out[0], at, buffer, piece(n, at));
    }
}

OP_HOT static void geglu_piece(float *y, const float *value, const float *gate, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) y[j] = value[j] * scalar_gelu(gate[j]);
}

/* The gradients may take the place of what they are computed from. */
OP_HOT static void geglu_grad_piece(float *d_value, float *d_gate, const float *dy, const float *value, const float *gate, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        float v = value[j], g = gate[j];
        d_value[j] = dy[j] * scalar_gelu(g);
        d_gate[j] = dy[j] * v * scalar_gelu_slope(g);
    }
}

static void geglu_cpu(const record *r, const device *d) {
    (void)d;
    const float *x = r->in[0]->cpu;
    int64_t n = r->i[I_COLUMNS];
#pragma omp parallel for schedule(static) if (r->i[I_ROWS] * n > OP_SMALL)
    for (int64_t i = 0; i < r->i[I_ROWS]; i++)
        for (int64_t at = 0; at < n; at += PIECE) {
            const float *value = x + 2 * i * n + at;
            float buffer[PIECE], *y = piece_target(r->out[0], i * n + at, buffer);
            geglu_piece(y, value, value + n, piece(n, at));
            piece_store(r->out[0], i * n + at, buffer, piece(n, at));
        }
}

static void geglu_grad_cpu(const record *r, const device *d) {
    (void)d;
    const float *dy = r->in[0]->cpu, *x = r->in[1]->cpu;
    int64_t n = r->i[I_COLUMNS];
#pragma omp parallel for schedule(static) if (r->i[I_ROWS] * n > OP_SMALL)
    for (int64_t i = 0; i < r->i[I_ROWS]; i++)
        for (int64_t at = 0; at < n; at += PIECE) {
            int64_t first = 2 * i * n + at, count = piece(n, at);
            float buffer[2][PIECE], *d_value = piece_target(r->out[0], first, buffer[0]),
                                    *d_gate = piece_target(r->out[0], first + n, buffer[1]);
            geglu_grad_piece(d_value, d_gate, dy + i * n + at, x + first, x + first + n, count);
            piece_store(r->out[0], first, buffer[0], count);
            piece_store(r->out[0], first + n, buffer[1], count);
        }
}

OP_HOT static void add_piece(float *y, const float *a, const float *b, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

static void add_cpu(const record *r, const device *d) {
    (void)d;
    const float *a = r->in[0]->cpu, *b = r->in[1]->cpu;
    float *y = r->out[0]->cpu;
    int64_t n = r->i[I_COUNT];
#pragma omp parallel for schedule(static) if (n > PIECE)
    for (int64_t at = 0; at < n; at += PIECE) add_piece(y + at, a + at, b + at, piece(n, at));
}

/* ---- Vulkan ---- */

static void run_activation(kernel_call *k, const record *r, gpu_recording *rec) {
    int64_t n = r->i[I_COUNT], step = kernel_step(n);
    kernel_constant(k, r->i[I_KIND]);
    kernel_constant(k, step);
    kernel_push(k, n);
    kernel_run_over(k, rec, n / step);
}

static void activation_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("activation");
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    run_activation(&k, r, rec);
}

static void activation_grad_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("activation_backward");
    kernel_read_typed(&k, r->in[1]);
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    run_activation(&k, r, rec);
}

static void run_geglu(kernel_call *k, const record *r, gpu_recording *rec) {
    int64_t step = kernel_step(r->i[I_COLUMNS]), steps = r->i[I_ROWS] * r->i[I_COLUMNS] / step;
    kernel_constant(k, step);
    kernel_push(k, steps);
    kernel_push(k, r->i[I_COLUMNS] / step);
    kernel_push_divisor(k, r->i[I_COLUMNS] / step);
    kernel_run_over(k, rec, steps);
}

static void geglu_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("geglu");
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    run_geglu(&k, r, rec);
}

static void geglu_grad_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("geglu_backward");
    kernel_read_typed(&k, r->in[1]);
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    run_geglu(&k, r, rec);
}

static void add_vulkan(const record *r, gpu_recording *rec) {
    int64_t n = r->i[I_COUNT], step = kernel_step(n);
    kernel_call k = kernel_named("add");
    kernel_read_typed(&k, r->in[0]);
    kernel_read_typed(&k, r->in[1]);
    kernel_write_typed(&k, r->out[0]);
    kernel_constant(&k, step);
    kernel_push(&k, n);
    kernel_push_float(&k, 1.0f);
    kernel_run_over(&k, rec, n / step);
}

static const op ACTIVATION = {.name = "activation",
                              .backward = activation_backward,
                              .narrow = narrow_result,
                              .run_cpu = activation_cpu,
                              .run_vulkan = activation_vulkan,
                              .in_place = 0,
                              .cheap = true};
static const op ACTIVATION_GRAD = {.name = "activation_grad",
                                   .narrow = narrow_result,
                                   .run_cpu = activation_grad_cpu,
                                   .run_vulkan = activation_grad_vulkan,
                                   .in_place = 0};
static const op GEGLU = {.name = "geglu",
                         .backward = geglu_backward,
                         .narrow = narrow_result,
                         .run_cpu = geglu_cpu,
                         .run_vulkan = geglu_vulkan,
                         .in_place = -1,
                         .cheap = true};
static const op GEGLU_GRAD = {
    .name = "geglu_grad", .narrow = narrow_result, .run_cpu = geglu_grad_cpu, .run_vulkan = geglu_grad_vulkan, .in_place = 1};
static const op ADD = {.name = "add", .backward = add_backward, .run_cpu = add_cpu, .run_vulkan = add_vulkan, .in_place = 0};
const op *const OP_ACTIVATION = &ACTIVATION, *const OP_ACTIVATION_GRAD = &ACTIVATION_GRAD, *const OP_GEGLU = &GEGLU,
                *const OP_GEGLU_GRAD = &GEGLU_GRAD;
const op *const OP_ADD = &ADD;
