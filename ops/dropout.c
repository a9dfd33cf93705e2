/* Dropout: y = factor x or 0, as a hash of the element's place decides. Nothing is kept for the backward pass, which draws the same again.
   The hash is pcg4d (Jarzynski & Olano, "Hash Functions for GPU Rendering", JCGT 2020) of (place, stream, key), integers only: the same
   choices on every device. */
#include "ops/kernel.h"
#include "ops/op.h"

enum { I_ROWS, I_COLUMNS, I_ROWS_PER_GROUP, I_WHOLE, I_STREAM, I_THRESHOLD };

static const op DROPOUT;

static uint32_t choice(const uint32_t key[2], uint32_t stream, uint32_t place) {
    uint32_t x = place * 1664525u + 1013904223u, y = stream * 1664525u + 1013904223u;
    uint32_t z = key[0] * 1664525u + 1013904223u, w = key[1] * 1664525u + 1013904223u;
    x += y * w, y += z * x, z += x * y, w += y * z;
    x ^= x >> 16, y ^= y >> 16, w ^= w >> 16;
    return x + y * w;
}

static uint32_t threshold_of(double rate) { return (uint32_t)(rate * 0x1p32); }

bool op_dropout_keeps(const float key[2], int64_t stream, int64_t place, double rate) {
    return choice((uint32_t[]){(uint32_t)key[0], (uint32_t)key[1]}, (uint32_t)stream, (uint32_t)place) >= threshold_of(rate);
}

static tensor *append(tape *t, tensor *x, tensor *key, const record *like) {
    tensor *y = tape_temporary(t, x->type == DTYPE_F32 ? DTYPE_F32 : DTYPE_COUNT, x->rank, x->dim);
    record *r = tape_append(t, &DROPOUT, (tensor *[]){x, key}, 2, &y, 1);
    for (int i = 0; i < RECORD_INTS; i++) r->i[i] = like->i[i];
    r->f[0] = like->f[0];
    return y;
}

tensor *op_dropout(tape *t, tensor *x, tensor *key, dropout_shape s) {
    if (!x || !key) return NULL;
    if (key->type != DTYPE_F32 || tensor_count(key) != 2 || !(s.rate >= 0 && s.rate < 1))
        return tape_fail(t, "dropout: the key must be two numbers, the rate %g below 1", s.rate);
    int64_t rows = tensor_rows(x), columns = tensor_columns(x), image = x->rank > 2 ? rows / x->dim[0] : 1;
    int64_t group = s.of == DROPOUT_ELEMENTS ? 1 : s.of == DROPOUT_IMAGE_COLUMNS ? image : rows;
    const record like = {.i = {rows, columns, group, s.of == DROPOUT_WHOLE, s.stream, threshold_of(s.rate)}, .f = {s.factor}};
    return append(t, x, key, &like);
}

static void backward(tape *t, const record *r) {
    tensor *x = r->in[0];
    if (x->needs_grad) grad_add(t, x, append(t, tape_get_grad(r->out[0]), r->in[1], r));
}

/* ---- CPU ---- */

OP_HOT static void drop_row(float *y, const float *x, int64_t n, const uint32_t key[2], const record *r, int64_t group) {
    uint32_t stream = (uint32_t)r->i[I_STREAM], threshold = (uint32_t)r->i[I_THRESHOLD], step = r->i[I_WHOLE] ? 0 : 1;
    uint32_t first = step * (uint32_t)(group * n);
    float factor = r->f[0];
    for (int64_t j = 0; j < n; j++) y[j] = choice(key, stream, first + step * (uint32_t)j) >= threshold ? factor * x[j] : 0;
}

static void run_cpu(const record *r, const device *d) {
    (void)d;
    const float *x = r->in[0]->cpu, *given = r->in[1]->cpu;
    const uint32_t key[2] = {(uint32_t)given[0], (uint32_t)given[1]};
    float *y = r->out[0]->cpu;
    int64_t n = r->i[I_COLUMNS];
#pragma omp parallel for schedule(static) if (r->i[I_ROWS] * n > OP_SMALL)
    for (int64_t i = 0; i < r->i[I_ROWS]; i++) drop_row(y + i * n, x + i * n, n, key, r, i / r->i[I_ROWS_PER_GROUP]);
}

/* ---- Vulkan ---- */

static void run_vulkan(const record *r, gpu_recording *rec) {
    int64_t step = kernel_step(r->i[I_COLUMNS]), steps = r->i[I_ROWS] * r->i[I_COLUMNS] / step;
    kernel_call k = kernel_named("dropout");
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[1]);
    kernel_constant(&k, step);
    kernel_push(&k, steps);
    for (int i = I_COLUMNS; i <= I_THRESHOLD; i++) kernel_push(&k, r->i[i]);
    kernel_push_float(&k, r->f[0]);
    kernel_run_over(&k, rec, steps);
}

static const op DROPOUT = {.name = "dropout", .backward = backward, .run_cpu = run_cpu, .run_vulkan = run_vulkan, .in_place = 0};
const op *const OP_DROPOUT = &DROPOUT;
