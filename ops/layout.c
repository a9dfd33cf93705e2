/* Moving elements: channel ranges joined and cut out, nearest-neighbour enlargement, sums over pixels; and their gradients. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <math.h>
#include <string.h>

static const op CONCAT, SPLIT, TAKE, TAKE_GRAD, UPSAMPLE, UPSAMPLE_GRAD, SUM_PIXELS;

/* concat, and its reverse; I_FIRST: the side that out[0] of that is. */
enum { I_ROWS, I_WIDTH_A, I_WIDTH_B, I_FIRST };
/* take: elements of all, the first one taken and how many */
enum { TAKE_WIDTH, TAKE_FIRST, TAKE_COUNT };
/* upsample: */
enum { I_N, I_H, I_W, I_C, I_OH, I_OW };

tensor *op_concat(tape *t, tensor *a, tensor *b) {
    if (!a || !b) return NULL;
    char as[64], bs[64];
    if (tensor_rows(a) != tensor_rows(b))
        return tape_fail(t, "concat: %s and %s differ", tensor_shape_text(a, as), tensor_shape_text(b, bs));
    int64_t dim[TENSOR_RANK];
    for (int i = 0; i < a->rank; i++) dim[i] = a->dim[i];
    dim[a->rank - 1] += tensor_columns(b);
    tensor *y = tape_temporary(t, DTYPE_COUNT, a->rank, dim);
    record *r = tape_append(t, &CONCAT, (tensor *[]){a, b}, 2, &y, 1);
    r->i[I_ROWS] = tensor_rows(a), r->i[I_WIDTH_A] = tensor_columns(a), r->i[I_WIDTH_B] = tensor_columns(b);
    return y;
}

/* The sides of dy that are wanted, copied out. */
static void concat_backward(tape *t, const record *r) {
    tensor *dy = tape_get_grad(r->out[0]), *side[2];
    int count = 0;
    for (int i = 0; i < 2; i++)
        if (r->in[i]->needs_grad) side[count++] = tape_temporary(t, DTYPE_COUNT, r->in[i]->rank, r->in[i]->dim);
    if (!count) return;
    record *d = tape_append(t, &SPLIT, &dy, 1, side, count);
    memcpy(d->i, r->i, sizeof r->i);
    d->i[I_FIRST] = r->in[0]->needs_grad ? 0 : 1;
    for (int i = 0, k = 0; i < 2; i++)
        if (r->in[i]->needs_grad) grad_add(t, r->in[i], side[k++]);
}

tensor *op_take(tape *t, tensor *x, int64_t index) {
    if (!x) return NULL;
    char shape[64];
    if (x->rank < 2 || index < 0 || index >= x->dim[0] || x->type != DTYPE_F32)
        return tape_fail(t, "take: %s has no element %lld", tensor_shape_text(x, shape), (long long)index);
    tensor *y = tape_temporary(t, DTYPE_F32, x->rank - 1, x->dim + 1);
    record *r = tape_append(t, &TAKE, &x, 1, &y, 1);
    r->i[TAKE_WIDTH] = tensor_count(x), r->i[TAKE_COUNT] = tensor_count(y), r->i[TAKE_FIRST] = index * tensor_count(y);
    return y;
}

/* The gradient so far with dy added where it belongs. */
static void take_backward(tape *t, const record *r) {
    tensor *x = r->in[0], *so_far = tape_get_grad(x);
    tensor *sum = x->home == TENSOR_PARAMETER ? so_far : tape_temporary(t, DTYPE_F32, x->rank, x->dim);
    record *d = tape_append(t, &TAKE_GRAD, (tensor *[]){tape_get_grad(r->out[0]), so_far}, 2, &sum, 1);
    memcpy(d->i, r->i, sizeof r->i);
    if (x->home != TENSOR_PARAMETER) tape_set_grad(x, sum);
}

tensor *op_upsample(tape *t, tensor *x, int64_t oh, int64_t ow) {
    if (!x) return NULL;
    char shape[64];
    if (x->rank != 4 || oh < x->dim[1] || ow < x->dim[2])
        return tape_fail(t, "upsample: input %s is larger than the output", tensor_shape_text(x, shape));
    tensor *y = tape_temporary(t, DTYPE_COUNT, 4, (int64_t[]){x->dim[0], oh, ow, x->dim[3]});
    record *r = tape_append(t, &UPSAMPLE, &x, 1, &y, 1);
    const int64_t sizes[] = {x->dim[0], x->dim[1], x->dim[2], x->dim[3], oh, ow};
    memcpy(r->i, sizes, sizeof sizes);
    return y;
}

static void upsample_backward(tape *t, const record *r) {
    tensor *dx = tape_temporary(t, DTYPE_COUNT, 4, r->in[0]->dim), *dy = tape_get_grad(r->out[0]);
    record *d = tape_append(t, &UPSAMPLE_GRAD, &dy, 1, &dx, 1);
    memcpy(d->i, r->i, sizeof r->i);
    grad_add(t, r->in[0], dx);
}

tensor *op_sum_pixels(tape *t, tensor *x) {
    if (!x) return NULL;
    tensor *y = tape_temporary(t, DTYPE_COUNT, 2, (int64_t[]){x->dim[0], tensor_columns(x)});
    record *r = tape_append(t, &SUM_PIXELS, &x, 1, &y, 1);
    r->i[I_N] = x->dim[0], r->i[I_H] = tensor_rows(x) / x->dim[0], r->i[I_W] = 1, r->i[I_C] = tensor_columns(x);
    return y;
}

/* ---- CPU ---- */

static void copy_columns(float *to, int64_t to_width, const float *from, int64_t from_width, int64_t count, int64_t rows) {
#pragma omp parallel for schedule(static) if (rows * count > OP_SMALL)
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_width, from + i * from_width, (size_t)count * sizeof *to);
}

static void concat_cpu(const record *r, const device *d) {
    (void)d;
    int64_t a = r->i[I_WIDTH_A], b = r->i[I_WIDTH_B];
    float *y = r->out[0]->cpu;
    copy_columns(y, a + b, r->in[0]->cpu, a, a, r->i[I_ROWS]);
    copy_columns(y + a, a + b, r->in[1]->cpu, b, b, r->i[I_ROWS]);
}

static void split_cpu(const record *r, const device *d) {
    (void)d;
    int64_t a = r->i[I_WIDTH_A], b = r->i[I_WIDTH_B];
    const float *x = r->in[0]->cpu;
    if (r->i[I_FIRST] == 0) copy_columns(r->out[0]->cpu, a, x, a + b, a, r->i[I_ROWS]);
    const tensor *last = r->i[I_FIRST] == 1 ? r->out[0] : r->out[1];
    if (last) copy_columns(last->cpu, b, x + a, a + b, b, r->i[I_ROWS]);
}

static void take_cpu(const record *r, const device *d) {
    (void)d;
    memcpy(r->out[0]->cpu, (const float *)r->in[0]->cpu + r->i[TAKE_FIRST], r->out[0]->bytes);
}

static void take_grad_cpu(const record *r, const device *d) {
    (void)d;
    float *y = r->out[0]->cpu;
    const float *dy = r->in[0]->cpu;
    if (r->in[1])
        cpu_copy(y, r->in[1]->cpu, r->i[TAKE_WIDTH]);
    else
        memset(y, 0, r->out[0]->bytes);
    for (int64_t j = 0; j < r->i[TAKE_COUNT]; j++) y[r->i[TAKE_FIRST] + j] += dy[j];
}

/* The source of output index i, computed as PyTorch does: floor(i * (in / out)) in float. */
static int64_t nearest(int64_t i, int64_t in, int64_t out) {
    int64_t source = (int64_t)floorf((float)i * ((float)in / (float)out));
    return source < in ? source : in - 1;
}

static void upsample_cpu(const record *r, const device *d) {
    (void)d;
    const int64_t *i = r->i, c = i[I_C];
#pragma omp parallel for schedule(static) if (i[I_N] * i[I_OH] * i[I_OW] * c > OP_SMALL)
    for (int64_t row = 0; row < i[I_N] * i[I_OH]; row++) {
        int64_t n = row / i[I_OH], y = nearest(row % i[I_OH], i[I_H], i[I_OH]);
        const float *from = (const float *)r->in[0]->cpu + (n * i[I_H] + y) * i[I_W] * c;
        float *to = (float *)r->out[0]->cpu + row * i[I_OW] * c;
        for (int64_t x = 0; x < i[I_OW]; x++) memcpy(to + x * c, from + nearest(x, i[I_W], i[I_OW]) * c, (size_t)c * sizeof *to);
    }
}

/* Every output row belongs to one input row, so threads take input rows and add what belongs to them. */
static void upsample_grad_cpu(const record *r, const device *d) {
    (void)d;
    const int64_t *i = r->i, c = i[I_C];
#pragma omp parallel for schedule(static) if (i[I_N] * i[I_OH] * i[I_OW] * c > OP_SMALL)
    for (int64_t row = 0; row < i[I_N] * i[I_H]; row++) {
        int64_t n = row / i[I_H], y = row % i[I_H];
        float *dx = (float *)r->out[0]->cpu + row * i[I_W] * c;
        memset(dx, 0, (size_t)(i[I_W] * c) * sizeof *dx);
        for (int64_t oy = 0; oy < i[I_OH]; oy++) {
            if (nearest(oy, i[I_H], i[I_OH]) != y) continue;
            const float *dy = (const float *)r->in[0]->cpu + (n * i[I_OH] + oy) * i[I_OW] * c;
            for (int64_t ox = 0; ox < i[I_OW]; ox++) {
                float *to = dx + nearest(ox, i[I_W], i[I_OW]) * c;
                for (int64_t j = 0; j < c; j++) to[j] += dy[ox * c + j];
            }
        }
    }
}

static void sum_pixels_cpu(const record *r, const device *d) {
    (void)d;
    int64_t pixels = r->i[I_H], c = r->i[I_C];
    for (int64_t n = 0; n < r->i[I_N]; n++) {
        const float *x = (const float *)r->in[0]->cpu + n * pixels * c;
        float *y = (float *)r->out[0]->cpu + n * c;
#pragma omp parallel for schedule(static) if (pixels * c > OP_SMALL)
        for (int64_t j = 0; j < c; j++) {
            double sum = 0;
            for (int64_t p = 0; p < pixels; p++) sum += (double)x[p * c + j];
            y[j] = (float)sum;
        }
    }
}

/* ---- Vulkan ---- */

enum { MOST_ALONG_X = 32768 };

/* The two sides of concat and split: rows of `a` and `b` elements, z = 0 and 1. */
static void run_sides(kernel_call *k, gpu_recording *rec, int64_t rows, int64_t a, int64_t b, int64_t step, int64_t sides) {
    const int64_t widths[] = {a / step, b / step}, longest = a > b ? a : b;
    kernel_push(k, rows);
    for (int i = 0; i < 2; i++) {
        kernel_push(k, widths[i]);
        kernel_push_divisor(k, widths[i]);
    }
    int64_t groups = kernel_groups(rows * longest / step, 128), row = groups < MOST_ALONG_X ? groups : MOST_ALONG_X;
    kernel_run(k, rec, row, kernel_groups(groups, row), sides, 0);
}

static int64_t step_of_both(int64_t a, int64_t b) {
    int64_t x = kernel_step(a), y = kernel_step(b);
    return x < y ? x : y;
}

static void concat_vulkan(const record *r, gpu_recording *rec) {
    int64_t a = r->i[I_WIDTH_A], b = r->i[I_WIDTH_B], step = step_of_both(a, b);
    kernel_call k = kernel_named("concat");
    kernel_read_typed(&k, r->in[0]);
    kernel_read_typed(&k, r->in[1]);
    kernel_write_typed(&k, r->out[0]);
    kernel_constant(&k, step);
    run_sides(&k, rec, r->i[I_ROWS], a, b, step, 2);
}

static void split_vulkan(const record *r, gpu_recording *rec) {
    int64_t a = r->i[I_WIDTH_A], b = r->i[I_WIDTH_B], step = step_of_both(a, b);
    const tensor *last = r->out[1] ? r->out[1] : r->out[0]; /* of one side alone, the other binding is not used */
    kernel_call k = kernel_named("split");
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    kernel_write_typed(&k, last);
    kernel_constant(&k, step);
    kernel_constant(&k, r->i[I_FIRST]);
    run_sides(&k, rec, r->i[I_ROWS], a, b, step, r->out[1] ? 2 : 1);
}

/* rows: of the image that threads are spread over, and steps of one row of it. */
static void run_upsample(kernel_call *k, const record *r, gpu_recording *rec, bool doubled, int64_t rows, int64_t columns) {
    const int64_t *i = r->i, step = kernel_step(i[I_C]), push[] = {i[I_H], i[I_W], i[I_OH], i[I_OW], i[I_C] / step};
    kernel_constant(k, step);
    kernel_constant(k, doubled);
    for (size_t j = 0; j < sizeof push / sizeof *push; j++) kernel_push(k, push[j]);
    kernel_push_divisor(k, i[I_C] / step);
    kernel_push_float(k, (float)i[I_H] / (float)i[I_OH]);
    kernel_push_float(k, (float)i[I_W] / (float)i[I_OW]);
    kernel_run(k, rec, kernel_groups(columns * i[I_C] / step, 128), rows, i[I_N], 0);
}

static bool doubles(const record *r) { return r->i[I_OH] == 2 * r->i[I_H] && r->i[I_OW] == 2 * r->i[I_W]; }

static void upsample_vulkan(const record *r, gpu_recording *rec) {
    bool doubled = doubles(r);
    kernel_call k = kernel_named("upsample");
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    run_upsample(&k, r, rec, doubled, r->i[doubled ? I_H : I_OH], r->i[doubled ? I_W : I_OW]);
}

static void upsample_grad_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("upsample_backward");
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    run_upsample(&k, r, rec, doubles(r), r->i[I_H], r->i[I_W]);
}

static void sum_pixels_vulkan(const record *r, gpu_recording *rec) {
    int64_t step = kernel_step(r->i[I_C]), channels = step == 8 ? 64 : 16 * step; /* of a workgroup: shaders/group_pixels.glsl */
    kernel_call k = kernel_named("sum_pixels");
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    kernel_constant(&k, step);
    kernel_constant(&k, r->i[I_H] % 64 == 0);
    kernel_push(&k, r->i[I_H]);
    kernel_push(&k, r->i[I_C] / step);
    kernel_run(&k, rec, kernel_groups(r->i[I_C], channels), r->i[I_N], 1, 0);
}

static void take_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("take");
    kernel_read(&k, r->in[0]);
    kernel_write(&k, r->out[0]);
    kernel_push(&k, r->i[TAKE_FIRST]);
    kernel_push(&k, r->i[TAKE_COUNT]);
    kernel_run_over(&k, rec, r->i[TAKE_COUNT]);
}

static void take_grad_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("take_backward");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1] ? r->in[1] : r->in[0]);
    kernel_write(&k, r->out[0]);
    kernel_constant(&k, r->in[1] != NULL);
    kernel_push(&k, r->i[TAKE_WIDTH]);
    kernel_push(&k, r->i[TAKE_FIRST]);
    kernel_push(&k, r->i[TAKE_COUNT]);
    kernel_run_over(&k, rec, r->i[TAKE_WIDTH]);
}

static const op CONCAT = {
    .name = "concat", .backward = concat_backward, .run_cpu = concat_cpu, .run_vulkan = concat_vulkan, .in_place = -1, .cheap = true};
static const op SPLIT = {.name = "split", .run_cpu = split_cpu, .run_vulkan = split_vulkan, .in_place = -1};
static const op UPSAMPLE = {.name = "upsample",
                            .backward = upsample_backward,
                            .run_cpu = upsample_cpu,
                            .run_vulkan = upsample_vulkan,
                            .in_place = -1,
                            .cheap = true};
static const op UPSAMPLE_GRAD = {.name = "upsample_grad", .run_cpu = upsample_grad_cpu, .run_vulkan = upsample_grad_vulkan, .in_place = -1};
static const op SUM_PIXELS = {.name = "sum_pixels", .run_cpu = sum_pixels_cpu, .run_vulkan = sum_pixels_vulkan, .in_place = -1};
const op *const OP_CONCAT = &CONCAT, *const OP_SPLIT = &SPLIT, *const OP_UPSAMPLE = &UPSAMPLE, *const OP_UPSAMPLE_GRAD = &UPSAMPLE_GRAD;
const op *const OP_SUM_PIXELS = &SUM_PIXELS;
static const op TAKE = {.name = "take", .backward = take_backward, .run_cpu = take_cpu, .run_vulkan = take_vulkan, .in_place = -1};
static const op TAKE_GRAD = {.name = "take_grad", .run_cpu = take_grad_cpu, .run_vulkan = take_grad_vulkan, .in_place = 1};
const op *const OP_TAKE = &TAKE, *const OP_TAKE_GRAD = &TAKE_GRAD;
