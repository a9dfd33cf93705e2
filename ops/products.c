/* Small matrices from which adapters make a weight, multiplied with each other: rows and columns of the two are each either paired
   (element by element) or crossed (all combinations, a's index the slow one).

   rows     columns   the result is known as
   paired   paired    Hadamard product
   crossed  crossed   Kronecker product (LoKr)
   paired   crossed   face-splitting product:   (a1 b1) o (a2 b2) = faces(a1, a2) khatri_rao(b1, b2), which makes LoHa of rank r a LoRA
   crossed  paired    Khatri-Rao product        of rank r^2 without ever holding the weight's difference

   Each may be one matrix, or one per tap of a convolution; one matrix goes with every tap of the other. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <string.h>

enum { I_TAPS, I_TAPS_A, I_TAPS_B, I_ROWS_A, I_COLUMNS_A, I_ROWS_B, I_COLUMNS_B, I_PAIRED_ROWS, I_PAIRED_COLUMNS, I_SECOND, I_ACCUMULATE };

static const op PRODUCTS, PRODUCTS_GRAD;

static int64_t rows_of(const record *r) { return r->i[I_ROWS_A] * (r->i[I_PAIRED_ROWS] ? 1 : r->i[I_ROWS_B]); }
static int64_t columns_of(const record *r) { return r->i[I_COLUMNS_A] * (r->i[I_PAIRED_COLUMNS] ? 1 : r->i[I_COLUMNS_B]); }

tensor *op_products(tape *t, tensor *a, tensor *b, products_shape s) {
    if (!a || !b) return NULL;
    char as[64], bs[64];
    int64_t taps_a = tensor_count(a) / (s.rows_a * s.columns_a), taps_b = tensor_count(b) / (s.rows_b * s.columns_b);
    int64_t taps = taps_a > taps_b ? taps_a : taps_b;
    if (taps_a * s.rows_a * s.columns_a != tensor_count(a) || taps_b * s.rows_b * s.columns_b != tensor_count(b) ||
        (taps_a != 1 && taps_a != taps) || (taps_b != 1 && taps_b != taps) || (s.paired_rows && s.rows_a != s.rows_b) ||
        (s.paired_columns && s.columns_a != s.columns_b))
        return tape_fail(t, "product of factors %s and %s: they do not fit together", tensor_shape_text(a, as), tensor_shape_text(b, bs));
    record made = {.i = {taps, taps_a, taps_b, s.rows_a, s.columns_a, s.rows_b, s.columns_b, s.paired_rows, s.paired_columns}};
    int64_t dim[] = {taps, rows_of(&made), columns_of(&made)};
    tensor *y = tape_temporary(t, s.factor ? DTYPE_F32 : DTYPE_COUNT, taps > 1 ? 3 : 2, taps > 1 ? dim : dim + 1);
    record *r = tape_append(t, &PRODUCTS, (tensor *[]){a, b}, 2, &y, 1);
    for (int i = 0; i < RECORD_INTS; i++) r->i[i] = made.i[i];
    r->f[0] = s.scale;
    return y;
}

static void backward(tape *t, const record *r) {
    for (int second = 0; second < 2; second++) {
        tensor *x = r->in[second], *other = r->in[1 - second];
        if (!x->needs_grad) continue;
        bool accumulate;
        tensor *sum = grad_sum_begin(t, x, &accumulate);
        record *d = tape_append(t, &PRODUCTS_GRAD, (tensor *[]){tape_get_grad(r->out[0]), other}, 2, &sum, 1);
        for (int i = 0; i < RECORD_INTS; i++) d->i[i] = r->i[i];
        d->i[I_SECOND] = second, d->i[I_ACCUMULATE] = accumulate;
        d->f[0] = r->f[0];
        grad_sum_done(t, x, sum);
    }
}

/* ---- CPU ---- */

static void products_cpu(const record *r, const device *d) {
    (void)d;
    const int64_t *i = r->i, rows = rows_of(r), columns = columns_of(r);
    const float *a = r->in[0]->cpu, *b = r->in[1]->cpu;
    float *y = r->out[0]->cpu;
#pragma omp parallel for schedule(static) if (i[I_TAPS] * rows * columns > OP_SMALL)
    for (int64_t at = 0; at < i[I_TAPS] * rows; at++) {
        int64_t tap = at / rows, row = at % rows;
        int64_t row_a = i[I_PAIRED_ROWS] ? row : row / i[I_ROWS_B], row_b = i[I_PAIRED_ROWS] ? row : row % i[I_ROWS_B];
        const float *ra = a + ((i[I_TAPS_A] > 1 ? tap : 0) * i[I_ROWS_A] + row_a) * i[I_COLUMNS_A];
        const float *rb = b + ((i[I_TAPS_B] > 1 ? tap : 0) * i[I_ROWS_B] + row_b) * i[I_COLUMNS_B];
        float *out = y + at * columns;
        if (i[I_PAIRED_COLUMNS])
            for (int64_t j = 0; j < columns; j++) out[j] = r->f[0] * ra[j] * rb[j];
        else
            for (int64_t j = 0; j < i[I_COLUMNS_A]; j++, out += i[I_COLUMNS_B])
                for (int64_t l = 0; l < i[I_COLUMNS_B]; l++) out[l] = r->f[0] * ra[j] * rb[l];
    }
}

/* An axis of the result, seen from one factor: index = self * self_stride + other * other_stride, over `others` of the other factor. */
typedef struct axis {
    int64_t self, self_stride, other, other_stride;
    bool paired;
} axis;

static axis axis_of(int64_t a, int64_t b, bool paired, bool second) {
    if (paired) return (axis){a, 1, 1, 0, true};
    return second ? (axis){b, 1, a, b, false} : (axis){a, b, b, 1, false};
}

OP_HOT static void add_paired(float *out, const float *g, const float *factor, float scale, int64_t n) {
    for (int64_t j = 0; j < n; j++) out[j] += scale * g[j] * factor[j];
}

OP_HOT static void add_scaled(float *out, const float *g, float factor, int64_t n) {
    for (int64_t j = 0; j < n; j++) out[j] += factor * g[j];
}

OP_HOT static float dot(const float *x, const float *y, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += x[j] * y[j];
    return sum;
}

/* A row of the result's gradient g times the row of the other factor that is in it. */
static void add_row(float *out, const float *g, const float *factor, axis columns, float scale) {
    if (columns.paired)
        add_paired(out, g, factor, scale, columns.self);
    else if (columns.self_stride == 1)
        for (int64_t l = 0; l < columns.other; l++) add_scaled(out, g + l * columns.other_stride, scale * factor[l], columns.self);
    else
        for (int64_t j = 0; j < columns.self; j++) out[j] += scale * dot(g + j * columns.self_stride, factor, columns.other);
}

/* The gradient of one row: the sum over everything that it was multiplied with. */
static void add_grad_of(const record *r, float *out, axis rows, axis columns, int64_t tap, int64_t row) {
    const int64_t *i = r->i;
    bool second = i[I_SECOND] != 0, shared = i[second ? I_TAPS_B : I_TAPS_A] == 1, other_shared = i[second ? I_TAPS_A : I_TAPS_B] == 1;
    int64_t width = columns_of(r), height = rows_of(r);
    int64_t other_rows = rows.paired ? rows.self : rows.other, other_columns = columns.paired ? columns.self : columns.other;
    const float *g = r->in[0]->cpu, *other = r->in[1]->cpu;
    for (int64_t s = shared ? 0 : tap; s < (shared ? i[I_TAPS] : tap + 1); s++)
        for (int64_t k = 0; k < rows.other; k++)
            add_row(out, g + (s * height + row * rows.self_stride + k * rows.other_stride) * width,
                    other + ((other_shared ? 0 : s) * other_rows + (rows.paired ? row : k)) * other_columns, columns, r->f[0]);
}

static void grad_axes(const record *r, axis *rows, axis *columns) {
    const int64_t *i = r->i;
    *rows = axis_of(i[I_ROWS_A], i[I_ROWS_B], i[I_PAIRED_ROWS] != 0, i[I_SECOND] != 0);
    *columns = axis_of(i[I_COLUMNS_A], i[I_COLUMNS_B], i[I_PAIRED_COLUMNS] != 0, i[I_SECOND] != 0);
}

static void products_grad_cpu(const record *r, const device *d) {
    (void)d;
    axis rows, columns;
    grad_axes(r, &rows, &columns);
    float *out = r->out[0]->cpu;
    int64_t count = tensor_count(r->out[0]) / columns.self;
#pragma omp parallel for schedule(static) if (tensor_count(r->in[0]) > OP_SMALL)
    for (int64_t at = 0; at < count; at++) {
        float *line = out + at * columns.self;
        if (!r->i[I_ACCUMULATE]) memset(line, 0, (size_t)columns.self * sizeof *line);
        add_grad_of(r, line, rows, columns, at / rows.self, at % rows.self);
    }
}

/* ---- Vulkan ---- */

static void products_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("products");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    kernel_write_typed(&k, r->out[0]);
    for (int i = I_TAPS; i <= I_PAIRED_COLUMNS; i++) kernel_push(&k, r->i[i]);
    kernel_push_float(&k, r->f[0]);
    kernel_run_over(&k, rec, tensor_count(r->out[0]));
}

static void push_axis(kernel_call *k, axis a) {
    kernel_push(k, a.self);
    kernel_push(k, a.self_stride);
    kernel_push(k, a.other);
    kernel_push(k, a.other_stride);
    kernel_push(k, a.paired);
}

/* The gradient of a factor of one element, a scalar: everything is summed, which is not for one thread to do. */
static void scalar_grad_vulkan(const record *r, gpu_recording *rec) {
    enum { THREADS = 256 };
    kernel_call k = kernel_named("dot");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    kernel_write(&k, r->out[0]);
    kernel_constant(&k, THREADS);
    kernel_push(&k, tensor_count(r->in[1]));
    kernel_push(&k, r->i[I_ACCUMULATE]);
    kernel_push_float(&k, r->f[0]);
    kernel_run(&k, rec, 1, 1, 1, 0);
}

static void products_grad_vulkan(const record *r, gpu_recording *rec) {
    if (tensor_count(r->out[0]) == 1 && tensor_count(r->in[0]) == tensor_count(r->in[1])) {
        scalar_grad_vulkan(r, rec);
        return;
    }
    axis rows, columns;
    grad_axes(r, &rows, &columns);
    bool second = r->i[I_SECOND] != 0;
    kernel_call k = kernel_named("products_backward");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    kernel_write(&k, r->out[0]);
    kernel_push(&k, r->i[I_TAPS]);
    kernel_push(&k, r->i[second ? I_TAPS_B : I_TAPS_A]);
    kernel_push(&k, r->i[second ? I_TAPS_A : I_TAPS_B]);
    kernel_push(&k, rows_of(r));
    kernel_push(&k, columns_of(r));
    push_axis(&k, rows);
    push_axis(&k, columns);
    kernel_push(&k, r->i[I_ACCUMULATE]);
    kernel_push_float(&k, r->f[0]);
    kernel_run_over(&k, rec, tensor_count(r->out[0]));
}

static const op PRODUCTS = {
    .name = "products", .backward = backward, .run_cpu = products_cpu, .run_vulkan = products_vulkan, .in_place = -1};
static const op PRODUCTS_GRAD = {.name = "products_grad", .run_cpu = products_grad_cpu, .run_vulkan = products_grad_vulkan, .in_place = -1};
const op *const OP_PRODUCTS = &PRODUCTS, *const OP_PRODUCTS_GRAD = &PRODUCTS_GRAD;
