/* 2-D convolution, channels-last, weights [tap][out][in], and its two gradients. The three are matrix products over gathered pixels:

   forward         y[p, o]    = sum over tap, c of x[p * stride + tap - pad, c] w[tap][o][c]
   backward-data   dx[q, c]   = sum over tap, o of dy[(q + pad - tap) / stride, o] w[tap][o][c]
   backward-weight dw[tap][o][c] = sum over p of dy[p, o] x[p * stride + tap - pad, c]

   Own CPU kernels (cpu/cpu.h) and Vulkan gather pixels while they multiply. For BLAS the CPU gathers them into rows of scratch memory, a
   piece at a time. */
#include "base/memory.h"
#include "ops/kernel.h"
#include "ops/op.h"

#include <string.h>

enum { IN_X, IN_W, IN_BIAS, IN_RESIDUAL, IN_SHIFT, INPUTS };
/* Sizes of the forward convolution: its input is [n, h, w, c], its output [n, oh, ow, o]. */
enum { I_N, I_H, I_W, I_C, I_OH, I_OW, I_O, I_KERNEL, I_STRIDE, I_PAD, I_ACCUMULATE /* weight gradients */ };

/* fp32 elements gathered, and weights expanded, at a time on the CPU. */
enum { PANEL = 1 << 22 };

static const op CONV, CONV_DATA, CONV_WEIGHT;
static gemm_call forward_product(const record *r), data_product(const record *r), weight_product(const record *r);

static int64_t out_size(int64_t in, conv_shape s) { return (in + s.pad_before + s.pad_after - s.kernel) / s.stride + 1; }

tensor *op_conv2d(tape *t, tensor *x, tensor *w, tensor *bias, tensor *residual, tensor *shift, conv_shape shape) {
    if (!x || !w) return NULL;
    char xs[64], ws[64];
    int64_t taps = (int64_t)shape.kernel * shape.kernel;
    if (x->rank != 4 || w->rank != 3 || w->dim[0] != taps || w->dim[2] != x->dim[3] ||
        x->dim[1] + shape.pad_before + shape.pad_after < shape.kernel || x->dim[2] + shape.pad_before + shape.pad_after < shape.kernel)
        return tape_fail(t, "convolution %s: input %s does not fit weight %s", w->name ? w->name : "", tensor_shape_text(x, xs),
                         tensor_shape_text(w, ws));
    int64_t dim[TENSOR_RANK] = {x->dim[0], out_size(x->dim[1], shape), out_size(x->dim[2], shape), w->dim[1]};
    tensor *y = tape_temporary(t, DTYPE_COUNT, 4, dim);
    if ((bias && tensor_count(bias) != dim[3]) || (residual && tensor_count(residual) != tensor_count(y)) ||
        (shift && tensor_count(shift) != dim[0] * dim[3]))
        return tape_fail(t, "convolution %s: bias, residual or shift does not fit output %s", w->name ? w->name : "",
                         tensor_shape_text(y, ws));
    record *r = tape_append(t, &CONV, (tensor *[]){x, w, bias, residual, shift}, INPUTS, (tensor *[]){y}, 1);
    const int64_t sizes[] = {x->dim[0], x->dim[1], x->dim[2],    x->dim[3],    dim[1],
                             dim[2],    dim[3],    shape.kernel, shape.stride, shape.pad_before};
    memcpy(r->i, sizes, sizeof sizes);
    return y;
}

static void backward(tape *t, const record *r) {
    tensor *x = r->in[IN_X], *w = r->in[IN_W], *dy = tape_get_grad(r->out[0]);
    if (x->needs_grad) {
        tensor *dx = tape_temporary(t, DTYPE_COUNT, 4, x->dim);
        record *d = tape_append(t, &CONV_DATA, (tensor *[]){dy, w, NULL, tape_get_grad(x)}, 4, (tensor *[]){dx}, 1);
        memcpy(d->i, r->i, sizeof r->i);
        tape_set_grad(x, dx);
    }
    if (w->needs_grad) {
        bool accumulate;
        tensor *sum = grad_sum_begin(t, w, &accumulate);
        record *d = tape_append(t, &CONV_WEIGHT, (tensor *[]){dy, x}, 2, &sum, 1);
        memcpy(d->i, r->i, sizeof r->i);
        d->i[I_ACCUMULATE] = accumulate;
        grad_sum_done(t, w, sum);
    }
    grad_add_columns(t, r->in[IN_BIAS], dy, NULL, 1);
    grad_add(t, r->in[IN_RESIDUAL], dy);
    if (r->in[IN_SHIFT] && r->in[IN_SHIFT]->needs_grad) grad_add(t, r->in[IN_SHIFT], op_sum_pixels(t, dy));
}

static double flops(const record *r) {
    const int64_t *i = r->i;
    return 2.0 * (double)(i[I_N] * i[I_OH] * i[I_OW]) * (double)(i[I_O] * i[I_C] * i[I_KERNEL] * i[I_KERNEL]);
}

static int64_t taps_of(const record *r) { return r->i[I_KERNEL] * r->i[I_KERNEL]; }
static int64_t at_most(int64_t value, int64_t limit) { return limit < 1 ? 1 : value < limit ? value : limit; }
static int64_t pixels_out(const record *r) { return r->i[I_N] * r->i[I_OH] * r->i[I_OW]; }
static int64_t pixels_in(const record *r) { return r->i[I_N] * r->i[I_H] * r->i[I_W]; }
/* Every row of the product reads one row of its left operand. */
static bool is_linear(const record *r) { return r->i[I_KERNEL] == 1 && r->i[I_STRIDE] == 1 && r->i[I_PAD] == 0; }

/* ---- CPU: own kernels ---- */

static bool uses_kernels(const record *r, const device *d) { return d->kernels && cpu_kernels_read(r->in[IN_W]); }
static const float *floats(const tensor *x) { return x ? x->cpu : NULL; }

/* A product and where its rows come from. */
typedef struct cpu_call {
    cpu_gemm product;
    cpu_gather gather;
    bool linear;
} cpu_call;

/* What the forward convolution gathers. */
static cpu_gather gather_of(const record *r) {
    const int64_t *i = r->i;
    return (cpu_gather){i[I_OH], i[I_OW], i[I_H], i[I_W], (int)i[I_KERNEL], (int)i[I_STRIDE], (int)i[I_PAD], false};
}

static cpu_call forward_call(const record *r, const device *d) {
    const int64_t *i = r->i;
    return (cpu_call){.product = {.m = pixels_out(r),
                                  .n = i[I_O],
                                  .k = i[I_C],
                                  .taps = (int)taps_of(r),
                                  .a = r->in[IN_X]->cpu,
                                  .a_type = r->in[IN_X]->type,
                                  .lda = i[I_C],
                                  .b = r->in[IN_W]->cpu,
                                  .b_type = r->in[IN_W]->type,
                                  .packed = r->in[IN_W]->packed,
                                  .scale = 1,
                                  .bias = floats(r->in[IN_BIAS]),
                                  .shift = floats(r->in[IN_SHIFT]),
                                  .residual = floats(r->in[IN_RESIDUAL]),
                                  .c = r->out[0]->cpu,
                                  .c_type = r->out[0]->type,
                                  .rows_per_image = i[I_OH] * i[I_OW],
                                  .bf16 = d->bf16},
                      .gather = gather_of(r),
                      .linear = is_linear(r)};
}

static cpu_call data_call(const record *r, const device *d) {
    const int64_t *i = r->i;
    return (cpu_call){.product = {.m = pixels_in(r),
                                  .n = i[I_C],
                                  .k = i[I_O],
                                  .taps = (int)taps_of(r),
                                  .a = r->in[IN_X]->cpu,
                                  .a_type = r->in[IN_X]->type,
                                  .lda = i[I_O],
                                  .b = r->in[IN_W]->cpu,
                                  .b_type = r->in[IN_W]->type,
                                  .packed = r->in[IN_W]->packed,
                                  .kn = true,
                                  .scale = 1,
                                  .residual = floats(r->in[IN_RESIDUAL]),
                                  .c = r->out[0]->cpu,
                                  .c_type = r->out[0]->type,
                                  .rows_per_image = i[I_H] * i[I_W],
                                  .bf16 = d->bf16},
                      .gather = {i[I_H], i[I_W], i[I_OH], i[I_OW], (int)i[I_KERNEL], (int)i[I_STRIDE], (int)i[I_PAD], true},
                      .linear = is_linear(r)};
}

static narrowing call_narrow(cpu_call c, const device *d) {
    if (!c.linear) c.product.gather = &c.gather;
    const cpu_kernels *k = d->kernels;
    bool bf16 = !k->winograd_serves(&c.product) && k->narrow && k->narrow(&c.product);
    return bf16 ? (narrowing){.in = 1u << IN_X, .out = 1, .weights = 1u << IN_W} : (narrowing){0};
}

static narrowing forward_narrow(const record *r, const device *d) {
    return uses_kernels(r, d) ? call_narrow(forward_call(r, d), d) : (narrowing){0};
}
static narrowing data_narrow(const record *r, const device *d) {
    return uses_kernels(r, d) ? call_narrow(data_call(r, d), d) : (narrowing){0};
}

static size_t call_scratch(cpu_call c, const device *d) {
    if (!c.linear) c.product.gather = &c.gather;
    c.product.packed = false; /* another plan may have the weights loaded as they are */
    return d->kernels->winograd_serves(&c.product) ? d->kernels->winograd_scratch(&c.product, d->threads)
                                                   : d->kernels->gemm_scratch(&c.product, d->threads);
}

static void run_call(cpu_call c, const record *r, const device *d) {
    if (!c.linear) c.product.gather = &c.gather;
    if (d->kernels->winograd_serves(&c.product))
        d->kernels->winograd(&c.product, d->threads, r->scratch->cpu);
    else
        d->kernels->gemm(&c.product, d->threads, r->scratch->cpu);
}

static cpu_weight_grad weight_call(const record *r, const cpu_gather *gather) {
    return (cpu_weight_grad){.rows = pixels_out(r),
                             .outputs = r->i[I_O],
                             .inputs = r->i[I_C],
                             .taps = (int)taps_of(r),
                             .gather = is_linear(r) ? NULL : gather,
                             .dy = r->in[0]->cpu,
                             .x = r->in[1]->cpu,
                             .dw = r->out[0]->cpu,
                             .scale = 1};
}

/* ---- CPU: BLAS ---- */

/* rows [first, first + count) of the gathered matrix [pixels, taps * c]: for output pixel p the input pixels its taps see, zeros outside.
 */
static void gather_forward(const record *r, const float *x, int64_t first, int64_t count, float *rows) {
    const int64_t *i = r->i, c = i[I_C], kernel = i[I_KERNEL];
#pragma omp parallel for schedule(static) if (count * kernel * kernel * c > OP_SMALL)
    for (int64_t p = first; p < first + count; p++) {
        int64_t n = p / (i[I_OH] * i[I_OW]), oy = p / i[I_OW] % i[I_OH], ox = p % i[I_OW];
        float *row = rows + (p - first) * kernel * kernel * c;
        for (int64_t tap = 0; tap < kernel * kernel; tap++, row += c) {
            int64_t y = oy * i[I_STRIDE] + tap / kernel - i[I_PAD], xx = ox * i[I_STRIDE] + tap % kernel - i[I_PAD];
            bool inside = y >= 0 && y < i[I_H] && xx >= 0 && xx < i[I_W];
            if (inside)
                memcpy(row, x + ((n * i[I_H] + y) * i[I_W] + xx) * c, (size_t)c * sizeof *row);
            else
                memset(row, 0, (size_t)c * sizeof *row);
        }
    }
}

/* The same for backward-data: for input pixel q the output pixels that saw it through each tap. */
static void gather_backward(const record *r, const float *dy, int64_t first, int64_t count, float *rows) {
    const int64_t *i = r->i, o = i[I_O], kernel = i[I_KERNEL], stride = i[I_STRIDE];
#pragma omp parallel for schedule(static) if (count * kernel * kernel * o > OP_SMALL)
    for (int64_t q = first; q < first + count; q++) {
        int64_t n = q / (i[I_H] * i[I_W]), y = q / i[I_W] % i[I_H], x = q % i[I_W];
        float *row = rows + (q - first) * kernel * kernel * o;
        for (int64_t tap = 0; tap < kernel * kernel; tap++, row += o) {
            int64_t sy = y + i[I_PAD] - tap / kernel, sx = x + i[I_PAD] - tap % kernel;
            bool inside = sy >= 0 && sx >= 0 && sy % stride == 0 && sx % stride == 0 && sy / stride < i[I_OH] && sx / stride < i[I_OW];
            if (inside)
                memcpy(row, dy + ((n * i[I_OH] + sy / stride) * i[I_OW] + sx / stride) * o, (size_t)o * sizeof *row);
            else
                memset(row, 0, (size_t)o * sizeof *row);
        }
    }
}

/* Output channels [first, first + count) of the weight as fp32 [o][tap][c], the order of gathered rows. */
static void expand_forward(const record *r, int64_t first, int64_t count, float *panel) {
    const tensor *w = r->in[IN_W];
    int64_t taps = taps_of(r), c = r->i[I_C], all = r->i[I_O];
#pragma omp parallel for schedule(static) collapse(2) if (count * taps * c > OP_SMALL)
    for (int64_t o = 0; o < count; o++)
        for (int64_t tap = 0; tap < taps; tap++)
            dtype_to_f32(panel + (o * taps + tap) * c, cpu_at(w, (tap * all + first + o) * c), w->type, (size_t)c);
}

/* How the scratch memory is divided: gathered rows first, then weights. */
typedef struct pieces {
    int64_t rows, weights; /* gathered pixels, and output channels or reduction rows of the weight, at a time */
    int64_t row_size, weight_size;
} pieces;

static pieces forward_pieces(const record *r) {
    int64_t k = taps_of(r) * r->i[I_C];
    return (pieces){at_most(pixels_out(r), PANEL / k), at_most(r->i[I_O], PANEL / k), k, k};
}

static size_t forward_scratch(const record *r, const device *d) {
    if (d->gpu) {
        gemm_call g = forward_product(r);
        return kernel_gemm_scratch(&g, d->gpu);
    }
    if (uses_kernels(r, d)) return call_scratch(forward_call(r, d), d);
    pieces p = forward_pieces(r);
    return (size_t)(p.rows * p.row_size + p.weights * p.weight_size) * sizeof(float);
}

OP_HOT static void add_row(float *y, const float *bias, const float *shift, int64_t n) {
    if (bias)
        for (int64_t j = 0; j < n; j++) y[j] += bias[j];
    if (shift)
        for (int64_t j = 0; j < n; j++) y[j] += shift[j];
}

static void forward_blas(const record *r) {
    pieces p = forward_pieces(r);
    int64_t pixels = pixels_out(r), o = r->i[I_O], k = p.row_size;
    float *y = r->out[0]->cpu, *rows = r->scratch->cpu, *panel = rows + p.rows * p.row_size;
    if (r->in[IN_RESIDUAL]) cpu_copy(y, r->in[IN_RESIDUAL]->cpu, pixels * o);
    for (int64_t at = 0; at < pixels; at += p.rows) {
        int64_t count = at_most(pixels - at, p.rows);
        gather_forward(r, r->in[IN_X]->cpu, at, count, rows);
        for (int64_t first = 0; first < o; first += p.weights) {
            int64_t outs = at_most(o - first, p.weights);
            if (at == 0 || p.weights < o) expand_forward(r, first, outs, panel);
            blas_gemm(false, true, count, outs, k, 1, rows, k, panel, k, r->in[IN_RESIDUAL] ? 1.0f : 0.0f, y + at * o + first, o);
        }
    }
    const float *bias = r->in[IN_BIAS] ? r->in[IN_BIAS]->cpu : NULL, *shift = r->in[IN_SHIFT] ? r->in[IN_SHIFT]->cpu : NULL;
    if (!bias && !shift) return;
    int64_t image = r->i[I_OH] * r->i[I_OW];
#pragma omp parallel for schedule(static) if (pixels * o > OP_SMALL)
    for (int64_t i = 0; i < pixels; i++) add_row(y + i * o, bias, shift ? shift + i / image * o : NULL, o);
}

static void forward_cpu(const record *r, const device *d) {
    if (uses_kernels(r, d))
        run_call(forward_call(r, d), r, d);
    else
        forward_blas(r);
}

static pieces data_pieces(const record *r) {
    int64_t k = taps_of(r) * r->i[I_O], c = r->i[I_C];
    return (pieces){at_most(pixels_in(r), PANEL / k), r->in[IN_W]->type == DTYPE_F32 ? k : at_most(k, PANEL / c), k, c};
}

static size_t data_scratch(const record *r, const device *d) {
    if (d->gpu) {
        gemm_call g = data_product(r);
        return kernel_gemm_scratch(&g, d->gpu);
    }
    if (uses_kernels(r, d)) return call_scratch(data_call(r, d), d);
    pieces p = data_pieces(r);
    int64_t weights = r->in[IN_W]->type == DTYPE_F32 ? 0 : p.weights * p.weight_size;
    return (size_t)(p.rows * p.row_size + weights) * sizeof(float);
}

/* The weight as it lies is [taps * o, c]: gathered rows times it, in pieces of the reduction. */
static void data_blas(const record *r) {
    pieces p = data_pieces(r);
    const tensor *w = r->in[IN_W];
    int64_t pixels = pixels_in(r), c = r->i[I_C], k = p.row_size;
    float *dx = r->out[0]->cpu, *rows = r->scratch->cpu, *panel = rows + p.rows * p.row_size;
    if (r->in[IN_RESIDUAL]) cpu_copy(dx, r->in[IN_RESIDUAL]->cpu, pixels * c);
    for (int64_t at = 0; at < pixels; at += p.rows) {
        int64_t count = at_most(pixels - at, p.rows);
        gather_backward(r, r->in[IN_X]->cpu, at, count, rows);
        for (int64_t first = 0; first < k; first += p.weights) {
            int64_t part = at_most(k - first, p.weights);
            const float *b = panel;
            if (w->type == DTYPE_F32)
                b = cpu_at(w, first * c);
            else if (at == 0 || p.weights < k)
                cpu_expand(panel, cpu_at(w, first * c), w->type, part * c);
            blas_gemm(false, false, count, c, part, 1, rows + first, k, b, c, first || r->in[IN_RESIDUAL] ? 1.0f : 0.0f, dx + at * c, c);
        }
    }
}

static void data_cpu(const record *r, const device *d) {
    if (uses_kernels(r, d))
        run_call(data_call(r, d), r, d);
    else
        data_blas(r);
}

static pieces weight_pieces(const record *r) {
    int64_t k = taps_of(r) * r->i[I_C];
    return (pieces){at_most(pixels_out(r), PANEL / k), r->i[I_O], k, k};
}

static size_t weight_scratch(const record *r, const device *d) {
    if (d->gpu) {
        gemm_call g = weight_product(r);
        return kernel_gemm_scratch(&g, d->gpu);
    }
    if (d->kernels) {
        cpu_gather gather = gather_of(r);
        cpu_weight_grad g = weight_call(r, &gather);
        return d->kernels->weight_grad_scratch(&g, d->threads);
    }
    pieces p = weight_pieces(r);
    return (size_t)(p.rows * p.row_size + p.weights * p.weight_size) * sizeof(float);
}

static void weight_blas(const record *r) {
    pieces p = weight_pieces(r);
    int64_t pixels = pixels_out(r), o = r->i[I_O], c = r->i[I_C], k = p.row_size, taps = taps_of(r);
    const float *dy = r->in[0]->cpu;
    float *dw = r->out[0]->cpu, *rows = r->scratch->cpu, *sum = rows + p.rows * p.row_size;
    for (int64_t at = 0; at < pixels; at += p.rows) {
        int64_t count = at_most(pixels - at, p.rows);
        gather_forward(r, r->in[1]->cpu, at, count, rows);
        blas_gemm(true, false, o, k, count, 1, dy + at * o, o, rows, k, at ? 1.0f : 0.0f, sum, k);
    }
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t i = 0; i < o; i++)
            for (int64_t j = 0; j < c; j++) dw[(tap * o + i) * c + j] += sum[(i * taps + tap) * c + j];
}

static void weight_cpu(const record *r, const device *d) {
    if (!r->i[I_ACCUMULATE]) memset(r->out[0]->cpu, 0, r->out[0]->bytes);
    cpu_gather gather = gather_of(r);
    cpu_weight_grad g = weight_call(r, &gather);
    if (d->kernels)
        d->kernels->weight_grad(&g, d->threads, r->scratch->cpu);
    else
        weight_blas(r);
}

/* ---- Vulkan ---- */

static gemm_call vulkan_call(const record *r) {
    return (gemm_call){.a = r->in[IN_X],
                       .b = r->in[IN_W],
                       .c = r->out[0],
                       .scratch = r->scratch,
                       .taps = taps_of(r),
                       .kernel = r->i[I_KERNEL],
                       .stride = r->i[I_STRIDE],
                       .pad = r->i[I_PAD],
                       .scale = 1};
}

static gemm_call forward_product(const record *r) {
    const int64_t *i = r->i;
    gemm_call g = vulkan_call(r);
    g.bias = r->in[IN_BIAS], g.residual = r->in[IN_RESIDUAL], g.shift = r->in[IN_SHIFT];
    g.m = pixels_out(r), g.n = i[I_O], g.k = g.lda = g.ldb = i[I_C];
    g.tap_b = i[I_O] * i[I_C];
    g.height = i[I_OH], g.width = i[I_OW], g.rows_per_image = i[I_OH] * i[I_OW];
    g.source_height = i[I_H], g.source_width = i[I_W];
    g.a_mode = is_linear(r) ? GEMM_A_ROWS : GEMM_A_FORWARD;
    return g;
}

static void forward_vulkan(const record *r, gpu_recording *rec) {
    gemm_call g = forward_product(r);
    kernel_gemm(rec, &g);
}

static gemm_call data_product(const record *r) {
    const int64_t *i = r->i;
    gemm_call g = vulkan_call(r);
    g.residual = r->in[IN_RESIDUAL];
    g.m = pixels_in(r), g.n = g.ldb = i[I_C], g.k = g.lda = i[I_O];
    g.b_mode = GEMM_B_KN, g.tap_b = i[I_O] * i[I_C];
    g.height = i[I_H], g.width = i[I_W];
    g.source_height = i[I_OH], g.source_width = i[I_OW];
    g.a_mode = is_linear(r) ? GEMM_A_ROWS : GEMM_A_BACKWARD;
    return g;
}

static void data_vulkan(const record *r, gpu_recording *rec) {
    gemm_call g = data_product(r);
    kernel_gemm(rec, &g);
}

static gemm_call weight_product(const record *r) {
    const int64_t *i = r->i;
    gemm_call g = vulkan_call(r);
    g.m = g.lda = i[I_O], g.n = g.ldb = i[I_C], g.k = pixels_out(r);
    g.a_mode = GEMM_A_COLUMNS, g.b_mode = GEMM_B_GATHER;
    g.tap_outputs = true, g.accumulate = i[I_ACCUMULATE] != 0;
    g.height = i[I_OH], g.width = i[I_OW];
    g.source_height = i[I_H], g.source_width = i[I_W];
    return g;
}

static void weight_vulkan(const record *r, gpu_recording *rec) {
    gemm_call g = weight_product(r);
    kernel_gemm(rec, &g);
}

static const op CONV = {.name = "conv",
                        .backward = backward,
                        .scratch = forward_scratch,
                        .flops = flops,
                        .narrow = forward_narrow,
                        .run_cpu = forward_cpu,
                        .run_vulkan = forward_vulkan,
                        .in_place = IN_RESIDUAL};
static const op CONV_DATA = {.name = "conv_data",
                             .scratch = data_scratch,
                             .flops = flops,
                             .narrow = data_narrow,
                             .run_cpu = data_cpu,
                             .run_vulkan = data_vulkan,
                             .in_place = IN_RESIDUAL};
static const op CONV_WEIGHT = {
    .name = "conv_weight", .scratch = weight_scratch, .flops = flops, .run_cpu = weight_cpu, .run_vulkan = weight_vulkan, .in_place = -1};
const op *const OP_CONV = &CONV, *const OP_CONV_DATA = &CONV_DATA, *const OP_CONV_WEIGHT = &CONV_WEIGHT;
