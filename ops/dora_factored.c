/* DoRA's factors as in ops/dora.c, for a change that is itself a product, D_t = scale * L R_t with L [out, r] and R_t [r, in] per tap. The
   change is never made:

   |V|^2 = |W|^2 + 2 scale W.D + scale^2 |D|^2 = |W|^2 + the sum over r and taps of own * (2 scale H + scale^2 own G),

   of every column i where own = R, H_t = L^T W_t, G = L^T L, of every row where own = L, H = sum of W_t R_t^T, G = sum of R_t R_t^T: one
   product of the weight with the other factor, and r x r numbers. The gradient takes one more such product. H lies as `own` does.

   With c = d|V|^2 = -df magnitude / (2 (|V| + eps)^2 |V|): down = 2 c (scale H + scale^2 own G), dH = 2 scale c own, dG = scale / 2 dH^T
   own. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Of all ops here. */
enum { I_TAPS, I_OUT, I_IN, I_RANK, I_OUTPUT_AXIS, I_ACCUMULATE, I_ACCUMULATE_MAGNITUDE };
enum { IN_SQUARES, IN_OWN, IN_H, IN_G, IN_MAGNITUDE }; /* of the factors */
enum { GRAD_OWN, GRAD_H, GRAD_G, GRAD_MAGNITUDE, GRAD_NORM, GRAD_FACTOR };

/* As in ops/dora.c. */
static const float EPS = FLT_EPSILON;

static const op SQUARES, PRODUCT, FACTORED, FACTORED_GRAD;

/* ---- The tape ---- */

static record *append(tape *t, const op *o, tensor *const *in, int inputs, tensor *const *out, int outputs, const int64_t *sizes) {
    record *r = tape_append(t, o, in, inputs, out, outputs);
    memcpy(r->i, sizes, sizeof r->i);
    return r;
}

tensor *op_dora_factored(tape *t, tensor *w, tensor *left, tensor *right, float scale, tensor *magnitude, bool output_axis) {
    if (!w || !left || !right || !magnitude) return NULL;
    char ws[64], ls[64], rs[64];
    int64_t in = tensor_columns(w), taps = w->rank == 3 ? w->dim[0] : 1, out = tensor_rows(w) / taps, rank = tensor_columns(left);
    const int64_t count = output_axis ? out : in;
    if (left->rank != 2 || left->dim[0] != out || tensor_columns(right) != in || tensor_rows(right) != taps * rank ||
        tensor_count(magnitude) != count)
        return tape_fail(t, "DoRA: factors %s and %s do not fit weight %s", tensor_shape_text(left, ls), tensor_shape_text(right, rs),
                         tensor_shape_text(w, ws));
    /* Devices bind a tap of a tensor at multiples of 256 bytes only; where taps are smaller, so is the difference. */
    if (taps > 1 && tape_device(t)->gpu && (out * in % 128 || rank * in % 64))
        return op_dora(t, w, op_matmul(t, left, right, scale, true), magnitude, output_axis);
    const int64_t sizes[RECORD_INTS] = {taps, out, in, rank, output_axis};
    tensor *own = output_axis ? left : right, *other = output_axis ? right : left;
    tensor *squares = tape_temporary(t, DTYPE_F32, 1, &count), *h = tape_temporary(t, DTYPE_F32, own->rank, own->dim);
    tensor *made[] = {tape_temporary(t, DTYPE_F32, 1, &count), tape_temporary(t, DTYPE_F32, 1, &count)};
    append(t, &SQUARES, &w, 1, &squares, 1, sizes);
    append(t, &PRODUCT, (tensor *[]){w, other}, 2, &h, 1, sizes);
    tensor *g = op_factor_gram(t, other, !output_axis);
    append(t, &FACTORED, (tensor *[]){squares, own, h, g, magnitude}, 5, made, 2, sizes)->f[0] = scale;
    return made[0];
}

/* The two axes' products are each other's gradients. */
static void product_backward(tape *t, const record *r) {
    tensor *other = r->in[1];
    if (!other->needs_grad) return;
    int64_t sizes[RECORD_INTS];
    bool accumulate;
    memcpy(sizes, r->i, sizeof sizes);
    tensor *sum = grad_sum_begin(t, other, &accumulate);
    sizes[I_OUTPUT_AXIS] = !sizes[I_OUTPUT_AXIS], sizes[I_ACCUMULATE] = accumulate;
    append(t, &PRODUCT, (tensor *[]){r->in[0], tape_get_grad(r->out[0])}, 2, &sum, 1, sizes);
    grad_sum_done(t, other, sum);
}

static tensor *sum_of(tape *t, tensor *x, bool *accumulate) {
    *accumulate = false;
    /* All are computed together; what nobody asked for is a temporary that dies at once. */
    return x->needs_grad ? grad_sum_begin(t, x, accumulate) : tape_temporary(t, DTYPE_F32, x->rank, x->dim);
}

static void factored_backward(tape *t, const record *r) {
    tensor *own = r->in[IN_OWN], *h = r->in[IN_H], *g = r->in[IN_G], *magnitude = r->in[IN_MAGNITUDE];
    bool accumulate, accumulate_magnitude;
    tensor *dh = tape_temporary(t, DTYPE_F32, h->rank, h->dim);
    tensor *sums[] = {sum_of(t, own, &accumulate), dh, sum_of(t, magnitude, &accumulate_magnitude)};
    int64_t sizes[RECORD_INTS];
    memcpy(sizes, r->i, sizeof sizes);
    sizes[I_ACCUMULATE] = accumulate, sizes[I_ACCUMULATE_MAGNITUDE] = accumulate_magnitude;
    tensor *in[] = {own, h, g, magnitude, r->out[1], tape_get_grad(r->out[0])};
    append(t, &FACTORED_GRAD, in, 6, sums, 3, sizes)->f[0] = r->f[0];
    if (own->needs_grad) grad_sum_done(t, own, sums[0]);
    if (magnitude->needs_grad) grad_sum_done(t, magnitude, sums[2]);
    if (!h->needs_grad) return;
    grad_add(t, h, dh);
    grad_add(t, g, op_gram_of_two(t, dh, own, r->i[I_OUTPUT_AXIS] != 0, r->f[0] / 2));
}

/* ---- Sizes ---- */

static int64_t axis_count(const record *r) { return r->i[r->i[I_OUTPUT_AXIS] ? I_OUT : I_IN]; }
static int64_t own_count(const record *r) { return r->i[I_RANK] * (r->i[I_OUTPUT_AXIS] ? r->i[I_OUT] : r->i[I_TAPS] * r->i[I_IN]); }
static int64_t weight_rows(const record *r) { return r->i[I_TAPS] * r->i[I_OUT]; }

static double product_flops(const record *r) { return 2.0 * (double)weight_rows(r) * (double)(r->i[I_IN] * r->i[I_RANK]); }

/* ---- CPU: the weight ---- */

/* Partial sums are taken over this many parts, whatever the number of threads: results do not depend on it. */
enum { PARTS = 16 };
/* fp32 elements of the weight expanded at a time where there are no own kernels. */
enum { PANEL = 1 << 18 };

OP_HOT static void add_squares(const float *w, float *sums, int64_t n) {
    for (int64_t j = 0; j < n; j++) sums[j] += w[j] * w[j];
}

OP_HOT static float dot(const float *x, const float *y, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += x[j] * y[j];
    return sum;
}

static void squares_cpu(const record *r, const device *dev) {
    (void)dev;
    const int64_t in = r->i[I_IN], out = r->i[I_OUT], rows = weight_rows(r), count = axis_count(r);
    float *result = r->out[0]->cpu, *lines = r->scratch->cpu, *sums = lines + PARTS * in;
    memset(sums, 0, (size_t)(PARTS * count) * sizeof *sums);
#pragma omp parallel for schedule(static) if (rows * in > OP_SMALL)
    for (int part = 0; part < PARTS; part++)
        for (int64_t row = rows * part / PARTS; row < rows * (part + 1) / PARTS; row++) {
            float *line = lines + part * in, *sum = sums + part * count;
            dtype_to_f32(line, cpu_at(r->in[0], row * in), r->in[0]->type, (size_t)in);
            if (r->i[I_OUTPUT_AXIS])
                sum[row % out] += dot(line, line, in);
            else
                add_squares(line, sum, in);
        }
    for (int64_t j = 0; j < count; j++) {
        double sum = 0;
        for (int part = 0; part < PARTS; part++) sum += (double)sums[part * count + j];
        result[j] = (float)sum;
    }
}

/* C [rank, n] = (residual: C) + A [rank, k] W_tap, or A W_tap^T. */
static cpu_gemm tap_product(const record *r, const device *d, const float *a, int64_t tap, bool residual, float *c) {
    int64_t in = r->i[I_IN], out = r->i[I_OUT];
    bool kn = !r->i[I_OUTPUT_AXIS];
    return (cpu_gemm){.m = r->i[I_RANK],
                      .n = kn ? in : out,
                      .k = kn ? out : in,
                      .taps = 1,
                      .a = a,
                      .a_type = DTYPE_F32,
                      .lda = kn ? out : in,
                      .b = r->in[0]->cpu ? cpu_at(r->in[0], tap * out * in) : NULL,
                      .b_type = r->in[0]->type,
                      .kn = kn,
                      .scale = 1,
                      .residual = residual ? c : NULL,
                      .c = c,
                      .c_type = DTYPE_F32,
                      .rows_per_image = r->i[I_RANK],
                      .bf16 = d->bf16};
}

static bool uses_kernels(const record *r, const device *d) { return d->kernels && cpu_kernels_read(r->in[0]); }

/* The other factor or the result with the rank in front, rounded up to the alignment of what follows. */
static int64_t turned_floats(const record *r) { return (r->i[I_RANK] * r->i[I_OUT] + 15) / 16 * 16; }

static int64_t panel_rows(const record *r) {
    int64_t most = PANEL / r->i[I_IN];
    return most < 1 ? 1 : most < r->i[I_OUT] ? most : r->i[I_OUT];
}

static void multiply_panels(const record *r, const cpu_gemm *g, float *panel) {
    int64_t in = r->i[I_IN], out = r->i[I_OUT], rows = panel_rows(r);
    float beta = g->residual ? 1 : 0;
    for (int64_t at = 0; at < out; at += rows) {
        int64_t count = out - at < rows ? out - at : rows;
        cpu_expand(panel, (const char *)g->b + (size_t)(at * in) * dtype_size(g->b_type), g->b_type, count * in);
        if (g->kn)
            blas_gemm(false, false, g->m, in, count, 1, (const float *)g->a + at, out, panel, in, at ? 1 : beta, g->c, in);
        else
            blas_gemm(false, true, g->m, count, in, 1, g->a, in, panel, in, beta, (float *)g->c + at, out);
    }
}

static void multiply(const record *r, const device *d, const float *a, int64_t tap, bool residual, float *c) {
    cpu_gemm g = tap_product(r, d, a, tap, residual, c);
    float *scratch = (float *)r->scratch->cpu + turned_floats(r);
    if (uses_kernels(r, d))
        d->kernels->gemm(&g, d->threads, scratch);
    else
        multiply_panels(r, &g, scratch);
}

static void product_cpu(const record *r, const device *d) {
    const int64_t taps = r->i[I_TAPS], in = r->i[I_IN], out = r->i[I_OUT], rank = r->i[I_RANK];
    const float *x = r->in[1]->cpu;
    float *y = r->out[0]->cpu, *turned = r->scratch->cpu;
    bool accumulate = r->i[I_ACCUMULATE] != 0;
    if (!r->i[I_OUTPUT_AXIS]) {
        for (int64_t o = 0; o < out; o++)
            for (int64_t k = 0; k < rank; k++) turned[k * out + o] = x[o * rank + k];
        for (int64_t tap = 0; tap < taps; tap++) multiply(r, d, turned, tap, accumulate, y + tap * rank * in);
        return;
    }
    for (int64_t tap = 0; tap < taps; tap++) multiply(r, d, x + tap * rank * in, tap, tap > 0, turned);
    for (int64_t o = 0; o < out; o++)
        for (int64_t k = 0; k < rank; k++) y[o * rank + k] = (accumulate ? y[o * rank + k] : 0) + turned[k * out + o];
}

/* ---- CPU: the norms ---- */

/* u = 2 scale H + factor scale^2 own G */
static float *combine(const record *r, const tensor *own, const tensor *h, const tensor *g, float factor) {
    const int64_t rank = r->i[I_RANK], in = r->i[I_IN];
    const float scale = r->f[0], squared = factor * scale * scale;
    float *u = r->scratch->cpu;
    memcpy(u, h->cpu, (size_t)own_count(r) * sizeof *u);
    if (r->i[I_OUTPUT_AXIS])
        blas_gemm(false, false, r->i[I_OUT], rank, rank, squared, own->cpu, rank, g->cpu, rank, 2 * scale, u, rank);
    else
        for (int64_t tap = 0; tap < r->i[I_TAPS]; tap++) {
            int64_t at = tap * rank * in;
            blas_gemm(false, false, rank, in, rank, squared, g->cpu, rank, (const float *)own->cpu + at, in, 2 * scale, u + at, in);
        }
    return u;
}

OP_HOT static void add_products(const float *x, const float *y, float *sums, int64_t n) {
    for (int64_t j = 0; j < n; j++) sums[j] += x[j] * y[j];
}

static void factored_cpu(const record *r, const device *dev) {
    (void)dev;
    const int64_t count = axis_count(r), rank = r->i[I_RANK];
    const float *squares = r->in[IN_SQUARES]->cpu, *own = r->in[IN_OWN]->cpu, *magnitude = r->in[IN_MAGNITUDE]->cpu;
    const float *u = combine(r, r->in[IN_OWN], r->in[IN_H], r->in[IN_G], 1);
    float *factor = r->out[0]->cpu, *norm = r->out[1]->cpu;
    memcpy(norm, squares, (size_t)count * sizeof *norm);
    if (r->i[I_OUTPUT_AXIS])
        for (int64_t o = 0; o < count; o++) norm[o] += dot(own + o * rank, u + o * rank, rank);
    else
        for (int64_t row = 0; row < r->i[I_TAPS] * rank; row++) add_products(own + row * count, u + row * count, norm, count);
    for (int64_t j = 0; j < count; j++) {
        norm[j] = norm[j] > 0 ? sqrtf(norm[j]) : 0; /* rounding can leave less than nothing of a V that is zero */
        factor[j] = magnitude[j] / (norm[j] + EPS);
    }
}

OP_HOT static void scale_own_row(const float *c, bool per_column, const float *own, const float *u, float scale, bool accumulate,
                                 float *down, float *dh, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        float slope = c[per_column ? j : 0];
        down[j] = (accumulate ? down[j] : 0) + slope * u[j];
        dh[j] = 2 * scale * slope * own[j];
    }
}

static void factored_grad_cpu(const record *r, const device *dev) {
    (void)dev;
    const int64_t count = axis_count(r), rank = r->i[I_RANK], columns = r->i[I_OUTPUT_AXIS] ? rank : count, rows = own_count(r) / columns;
    const float *own = r->in[GRAD_OWN]->cpu, *magnitude = r->in[GRAD_MAGNITUDE]->cpu, *norm = r->in[GRAD_NORM]->cpu,
                *df = r->in[GRAD_FACTOR]->cpu;
    const float *u = combine(r, r->in[GRAD_OWN], r->in[GRAD_H], r->in[GRAD_G], 2);
    float *down = r->out[0]->cpu, *dh = r->out[1]->cpu, *dm = r->out[2]->cpu, *c = (float *)r->scratch->cpu + own_count(r);
    for (int64_t j = 0; j < count; j++) {
        float length = norm[j] + EPS;
        dm[j] = (r->i[I_ACCUMULATE_MAGNITUDE] ? dm[j] : 0) + df[j] / length;
        c[j] = norm[j] > 0 ? -df[j] * magnitude[j] / (2 * length * length * norm[j]) : 0;
    }
    for (int64_t row = 0; row < rows; row++)
        scale_own_row(r->i[I_OUTPUT_AXIS] ? c + row : c, !r->i[I_OUTPUT_AXIS], own + row * columns, u + row * columns, r->f[0],
                      r->i[I_ACCUMULATE] != 0, down + row * columns, dh + row * columns, columns);
}

/* ---- Vulkan ---- */

/* Rows that one workgroup sums for the norms of columns; norms of rows have one part per tap. */
enum { CHUNK = 256 };

static int64_t square_parts(const record *r) { return r->i[I_OUTPUT_AXIS] ? r->i[I_TAPS] : kernel_groups(weight_rows(r), CHUNK); }

static void squares_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("dora_norm");
    kernel_read_typed(&k, r->in[0]);
    kernel_read(&k, r->in[0]);
    kernel_write(&k, r->scratch);
    kernel_constant(&k, r->i[I_OUTPUT_AXIS]);
    kernel_constant(&k, 0);
    kernel_push(&k, weight_rows(r));
    kernel_push(&k, r->i[I_IN]);
    kernel_push(&k, CHUNK);
    if (r->i[I_OUTPUT_AXIS])
        kernel_run_groups(&k, rec, weight_rows(r));
    else
        kernel_run(&k, rec, kernel_groups(r->i[I_IN], 16), square_parts(r), 1, 0);
    kernel_reduce(rec, r->scratch, r->out[0], 1, square_parts(r), axis_count(r), false);
}

/* Part number `tap` of a tensor of as many equal parts. */
static tensor tap_of(const tensor *x, int64_t taps, int64_t tap) {
    tensor part = *x;
    part.gpu.size = x->gpu.size / (size_t)taps;
    part.gpu.offset += part.gpu.size * (size_t)tap;
    return part;
}

/* Of columns all taps at once, of rows one tap's part; w and x are its operands. */
static gemm_call vulkan_call(const record *r, const tensor *w, const tensor *x) {
    int64_t in = r->i[I_IN], out = r->i[I_OUT], rank = r->i[I_RANK];
    bool rows = r->i[I_OUTPUT_AXIS] != 0;
    return (gemm_call){.a = rows ? w : x,
                       .b = rows ? x : w,
                       .c = r->out[0],
                       .scratch = r->scratch,
                       .a_mode = rows ? GEMM_A_ROWS : GEMM_A_COLUMNS,
                       .b_mode = rows ? GEMM_B_NK : GEMM_B_KN,
                       .m = rows ? out : rank,
                       .n = rows ? rank : in,
                       .k = rows ? in : out,
                       .lda = rows ? in : rank,
                       .ldb = in,
                       .taps = rows ? 1 : r->i[I_TAPS],
                       .tap_b = out * in,
                       .tap_outputs = !rows,
                       .scale = 1,
                       .accumulate = r->i[I_ACCUMULATE] != 0};
}

static void product_vulkan(const record *r, gpu_recording *rec) {
    const int64_t taps = r->i[I_OUTPUT_AXIS] ? r->i[I_TAPS] : 1;
    for (int64_t tap = 0; tap < taps; tap++) {
        tensor w = tap_of(r->in[0], taps, tap), x = tap_of(r->in[1], taps, tap);
        gemm_call g = vulkan_call(r, &w, &x);
        g.accumulate |= tap > 0;
        kernel_gemm(rec, &g);
    }
}

static void push_norms(kernel_call *k, const record *r) {
    kernel_constant(k, r->i[I_OUTPUT_AXIS]);
    kernel_push(k, axis_count(r));
    kernel_push(k, r->i[I_RANK]);
    kernel_push(k, r->i[I_OUTPUT_AXIS] ? 1 : r->i[I_TAPS]);
    kernel_push_float(k, r->f[0]);
    kernel_push_float(k, EPS);
}

static void factored_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("dora_factored");
    for (int i = IN_SQUARES; i <= IN_MAGNITUDE; i++) kernel_read(&k, r->in[i]);
    kernel_write(&k, r->out[0]);
    kernel_write(&k, r->out[1]);
    push_norms(&k, r);
    kernel_run(&k, rec, kernel_groups(axis_count(r), 16), 1, 1, 0);
}

static void factored_grad_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("dora_factored_backward");
    for (int i = GRAD_OWN; i <= GRAD_FACTOR; i++) kernel_read(&k, r->in[i]);
    for (int i = 0; i < 3; i++) kernel_write(&k, r->out[i]);
    push_norms(&k, r);
    kernel_push(&k, r->i[I_ACCUMULATE]);
    kernel_push(&k, r->i[I_ACCUMULATE_MAGNITUDE]);
    kernel_run_over(&k, rec, own_count(r));
}

/* ---- Scratch memory ---- */

static size_t squares_scratch(const record *r, const device *d) {
    int64_t floats = d->gpu ? square_parts(r) * axis_count(r) : PARTS * (r->i[I_IN] + axis_count(r));
    return (size_t)floats * sizeof(float);
}

static size_t product_scratch(const record *r, const device *d) {
    if (d->gpu) {
        gemm_call g = vulkan_call(r, r->in[0], r->in[1]), adding = g;
        adding.accumulate = true;
        size_t first = kernel_gemm_scratch(&g, d->gpu), others = kernel_gemm_scratch(&adding, d->gpu);
        return first > others ? first : others;
    }
    cpu_gemm g = tap_product(r, d, NULL, 0, false, NULL);
    size_t more = uses_kernels(r, d) ? d->kernels->gemm_scratch(&g, d->threads) : (size_t)(panel_rows(r) * r->i[I_IN]) * sizeof(float);
    return (size_t)turned_floats(r) * sizeof(float) + more;
}

/* On the CPU: u, then the slopes. */
static size_t factored_scratch(const record *r, const device *d) {
    return d->gpu ? 0 : (size_t)(own_count(r) + axis_count(r)) * sizeof(float);
}

static const op SQUARES = {
    .name = "weight_squares", .scratch = squares_scratch, .run_cpu = squares_cpu, .run_vulkan = squares_vulkan, .in_place = -1};
static const op PRODUCT = {.name = "weight_product",
                           .backward = product_backward,
                           .scratch = product_scratch,
                           .flops = product_flops,
                           .run_cpu = product_cpu,
                           .run_vulkan = product_vulkan,
                           .in_place = -1};
static const op FACTORED = {.name = "dora_factored",
                            .backward = factored_backward,
                            .scratch = factored_scratch,
                            .run_cpu = factored_cpu,
                            .run_vulkan = factored_vulkan,
                            .in_place = -1};
static const op FACTORED_GRAD = {.name = "dora_factored_grad",
                                 .scratch = factored_scratch,
                                 .run_cpu = factored_grad_cpu,
                                 .run_vulkan = factored_grad_vulkan,
                                 .in_place = -1};
const op *const OP_WEIGHT_SQUARES = &SQUARES, *const OP_WEIGHT_PRODUCT = &PRODUCT, *const OP_DORA_FACTORED = &FACTORED,
                *const OP_DORA_FACTORED_GRAD = &FACTORED_GRAD;
