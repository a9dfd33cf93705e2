/* Columns times a factor of their own, which is what adapters that weigh channels do ((IA)^3, DoRA, the rescaling of OFT):

   forward   y = (a + b w) x + c residual + bias + shift, w per column
   backward  dx = (a + b w) dy, dw = b times the sum over rows of x dy, and so on */
#include "ops/kernel.h"
#include "ops/op.h"

#include <string.h>

enum { IN_X, IN_W, IN_RESIDUAL, IN_BIAS, IN_SHIFT, INPUTS };
enum { I_ROWS, I_COLUMNS, I_ROWS_PER_IMAGE };
enum { F_A, F_B, F_C };

/* Of COLUMN_SUM. */
enum { SUM_ROWS, SUM_COLUMNS, SUM_ACCUMULATE };

static const op SCALE, COLUMN_SUM;

static record *append(tape *t, tensor *const in[INPUTS], tensor *y, const column_scale *s) {
    record *r = tape_append(t, &SCALE, in, INPUTS, &y, 1);
    r->i[I_ROWS] = tensor_rows(y), r->i[I_COLUMNS] = tensor_columns(y);
    r->i[I_ROWS_PER_IMAGE] = y->rank > 2 ? tensor_rows(y) / y->dim[0] : 1;
    r->f[F_A] = s->a, r->f[F_B] = s->b, r->f[F_C] = s->c;
    return r;
}

tensor *op_scale_columns(tape *t, tensor *x, column_scale s) {
    if (!x) return NULL;
    char xs[64];
    int64_t c = tensor_columns(x);
    if ((s.w && tensor_count(s.w) != c) || (s.bias && tensor_count(s.bias) != c) ||
        (s.residual && tensor_count(s.residual) != tensor_count(x)) || (s.shift && tensor_count(s.shift) != x->dim[0] * c))
        return tape_fail(t, "scale: factors, bias, residual or shift do not fit input %s", tensor_shape_text(x, xs));
    /* Of a factor: a vector that is itself a weight stays fp32. */
    tensor *y = tape_temporary(t, x->type == DTYPE_F32 ? DTYPE_F32 : DTYPE_COUNT, x->rank, x->dim);
    append(t, (tensor *[]){x, s.w, s.residual, s.bias, s.shift}, y, &s);
    return y;
}

void grad_add_columns(tape *t, tensor *w, tensor *x, tensor *y, float factor) {
    if (!w || !w->needs_grad) return;
    bool accumulate;
    tensor *sum = grad_sum_begin(t, w, &accumulate);
    record *r = tape_append(t, &COLUMN_SUM, (tensor *[]){x, y}, 2, &sum, 1);
    r->i[SUM_ROWS] = tensor_rows(x), r->i[SUM_COLUMNS] = tensor_columns(x), r->i[SUM_ACCUMULATE] = accumulate;
    r->f[0] = factor;
    grad_sum_done(t, w, sum);
}

static void backward(tape *t, const record *r) {
    tensor *x = r->in[IN_X], *w = r->in[IN_W], *residual = r->in[IN_RESIDUAL], *shift = r->in[IN_SHIFT], *dy = tape_get_grad(r->out[0]);
    if (x->needs_grad) {
        tensor *dx = tape_temporary(t, x->type == DTYPE_F32 ? DTYPE_F32 : DTYPE_COUNT, x->rank, x->dim);
        append(t, (tensor *[]){dy, w, tape_get_grad(x), NULL, NULL}, dx, &(column_scale){.a = r->f[F_A], .b = r->f[F_B], .c = 1});
        tape_set_grad(x, dx);
    }
    grad_add_columns(t, w, x, dy, r->f[F_B]);
    grad_add_columns(t, r->in[IN_BIAS], dy, NULL, 1);
    if (residual && residual->needs_grad)
        grad_add(t, residual, r->f[F_C] == 1 ? dy : op_scale_columns(t, dy, (column_scale){.a = r->f[F_C]}));
    if (shift && shift->needs_grad) grad_add(t, shift, op_sum_pixels(t, dy));
}

/* ---- CPU ---- */

OP_HOT static void scale_row(float *y, const float *x, const float *factor, const float *add, const float *shift, const float *residual,
                             float c, int64_t n) {
    for (int64_t j = 0; j < n; j++) y[j] = x[j] * factor[j] + add[j];
    if (residual)
        for (int64_t j = 0; j < n; j++) y[j] += c * residual[j];
    if (shift)
        for (int64_t j = 0; j < n; j++) y[j] += shift[j];
}

/* The factors, and what is added to every row: in the scratch memory. */
static size_t scale_scratch(const record *r, const device *d) { return d->gpu ? 0 : 2 * (size_t)r->i[I_COLUMNS] * sizeof(float); }

static const float *floats(const tensor *x) { return x ? x->cpu : NULL; }

static void scale_cpu(const record *r, const device *d) {
    (void)d;
    int64_t n = r->i[I_COLUMNS], image = r->i[I_ROWS_PER_IMAGE];
    const float *x = r->in[IN_X]->cpu, *w = floats(r->in[IN_W]), *residual = floats(r->in[IN_RESIDUAL]), *bias = floats(r->in[IN_BIAS]),
                *shift = floats(r->in[IN_SHIFT]);
    float *y = r->out[0]->cpu, *factor = r->scratch->cpu, *add = factor + n;
    for (int64_t j = 0; j < n; j++) {
        factor[j] = r->f[F_A] + (w ? r->f[F_B] * w[j] : 0);
        add[j] = bias ? bias[j] : 0;
    }
#pragma omp parallel for schedule(static) if (r->i[I_ROWS] * n > OP_SMALL)
    for (int64_t i = 0; i < r->i[I_ROWS]; i++)
        scale_row(y + i * n, x + i * n, factor, add, shift ? shift + i / image * n : NULL, residual ? residual + i * n : NULL, r->f[F_C],
                  n);
}

/* Partial sums are taken over this many parts, whatever the number of threads: results do not depend on it. */
enum { PARTS = 16 };

OP_HOT static void sum_product_rows(const float *x, const float *y, int64_t rows, int64_t c, float *sums) {
    for (int64_t i = 0; i < rows; i++, x += c) {
        for (int64_t j = 0; j < c; j++) sums[j] += y ? x[j] * y[j] : x[j];
        if (y) y += c;
    }
}

static void column_sum_cpu(const record *r, const device *d) {
    (void)d;
    int64_t rows = r->i[SUM_ROWS], c = r->i[SUM_COLUMNS];
    const float *x = r->in[0]->cpu, *y = floats(r->in[1]);
    float *out = r->out[0]->cpu, *partial = r->scratch->cpu;
    memset(partial, 0, (size_t)(PARTS * c) * sizeof *partial);
#pragma omp parallel for schedule(static) if (rows * c > OP_SMALL)
    for (int part = 0; part < PARTS; part++) {
        int64_t first = rows * part / PARTS, end = rows * (part + 1) / PARTS;
        sum_product_rows(x + first * c, y ? y + first * c : NULL, end - first, c, partial + part * c);
    }
    for (int64_t j = 0; j < c; j++) {
        double sum = 0;
        for (int part = 0; part < PARTS; part++) sum += (double)partial[part * c + j];
        out[j] = (r->i[SUM_ACCUMULATE] ? out[j] : 0) + r->f[0] * (float)sum;
    }
}

/* ---- Vulkan ---- */

static void scale_vulkan(const record *r, gpu_recording *rec) {
    int64_t n = r->i[I_ROWS] * r->i[I_COLUMNS], four = kernel_fours(r->i[I_COLUMNS]), present = 0;
    kernel_call k = kernel_named("scale_columns");
    kernel_read_typed(&k, r->in[IN_X]);
    kernel_write_typed(&k, r->out[0]);
    for (int i = IN_W; i < INPUTS; i++) {
        kernel_read(&k, r->in[i] ? r->in[i] : r->in[IN_X]);
        if (r->in[i]) present |= 1 << i;
    }
    kernel_constant(&k, present);
    kernel_constant(&k, four);
    kernel_push(&k, r->i[I_ROWS]);
    kernel_push(&k, r->i[I_COLUMNS]);
    kernel_push(&k, r->i[I_ROWS_PER_IMAGE]);
    for (int i = F_A; i <= F_C; i++) kernel_push_float(&k, r->f[i]);
    kernel_run_over(&k, rec, four ? n / 4 : n);
}

/* Rows that one workgroup sums; a second kernel adds up the parts. */
enum { CHUNK = 256 };

static int64_t chunks_of(const record *r) { return kernel_groups(r->i[SUM_ROWS], CHUNK); }

static size_t sum_scratch(const record *r, const device *d) {
    return (size_t)((d->gpu ? chunks_of(r) : PARTS) * r->i[SUM_COLUMNS]) * sizeof(float);
}

static void column_sum_vulkan(const record *r, gpu_recording *rec) {
    const tensor *y = r->in[1] ? r->in[1] : r->in[0];
    kernel_call k = kernel_named("column_sum");
    kernel_read_typed(&k, r->in[0]);
    kernel_read_typed(&k, y);
    kernel_write(&k, r->scratch);
    kernel_constant(&k, r->in[1] != NULL);
    kernel_push(&k, r->i[SUM_ROWS]);
    kernel_push(&k, r->i[SUM_COLUMNS]);
    kernel_push(&k, CHUNK);
    kernel_push_float(&k, r->f[0]);
    kernel_run(&k, rec, kernel_groups(r->i[SUM_COLUMNS], 16), chunks_of(r), 1, 0);

    kernel_reduce(rec, r->scratch, r->out[0], 1, chunks_of(r), r->i[SUM_COLUMNS], r->i[SUM_ACCUMULATE] != 0);
}

static const op SCALE = {
    .name = "scale", .backward = backward, .scratch = scale_scratch, .run_cpu = scale_cpu, .run_vulkan = scale_vulkan, .in_place = IN_X};
static const op COLUMN_SUM = {
    .name = "column_sum", .scratch = sum_scratch, .run_cpu = column_sum_cpu, .run_vulkan = column_sum_vulkan, .in_place = -1};
const op *const OP_SCALE = &SCALE, *const OP_COLUMN_SUM = &COLUMN_SUM;
