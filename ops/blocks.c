/* Products along part of the columns only.

   mix      Columns are m blocks of k; y[.., l, :] = residual + scale * sum over m of w[l, m] x[.., m, :]. The outer half of a Kronecker
   product: kron(w, v) x = mix(w, v applied to every block) (LoKr). rotate   Columns are g blocks of b, each with a matrix of its own: y[g,
   j] = sum over i of r[g, i, j] x[g, i], or with the matrices transposed (OFT). Blocks may be taken from columns that a butterfly puts
   together (BOFT).

   Convolutions work on every block as on an image of its own: there the blocks come before the pixels, [n, m, pixels, k]. A mix without w
   only changes between the two orders. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <string.h>

/* Of the mix: images, pixels; blocks of x and of y; columns of a block. */
enum { I_IMAGES, I_PIXELS, I_M, I_L, I_K, I_X_FIRST, I_Y_FIRST /* blocks before pixels */, I_TRANSPOSED /* w is [m, l] */, I_ACCUMULATE };
enum { IN_X, IN_W, IN_RESIDUAL };

static const op MIX, MIX_WEIGHT, ROTATE, ROTATE_WEIGHT;

/* ---- Mix: the tape ---- */

static record *append_mix(tape *t, tensor *x, tensor *w, tensor *residual, tensor *y, const int64_t *sizes, float scale) {
    record *r = tape_append(t, &MIX, (tensor *[]){x, w, residual}, 3, &y, 1);
    memcpy(r->i, sizes, sizeof r->i);
    r->f[0] = scale;
    return r;
}

tensor *op_mix(tape *t, tensor *x, tensor *w, int64_t blocks, bool blocks_first, tensor *residual, float scale) {
    if (!x || !w) return NULL;
    char xs[64], ws[64];
    int64_t columns = tensor_columns(x), m = blocks, l = tensor_count(w) / m, images = blocks_first ? x->dim[0] / m : 1;
    if (w->rank != 2 || w->dim[1] != m || (blocks_first ? x->rank != 4 || x->dim[0] % m : columns % m))
        return tape_fail(t, "mix: input %s has not the %lld blocks of factor %s", tensor_shape_text(x, xs), (long long)m,
                         tensor_shape_text(w, ws));
    int64_t k = blocks_first ? columns : columns / m, dim[TENSOR_RANK];
    for (int i = 0; i < x->rank; i++) dim[i] = x->dim[i];
    dim[x->rank - 1] = l * k;
    if (blocks_first) dim[0] = images;
    tensor *y = tape_temporary(t, DTYPE_COUNT, x->rank, dim);
    if (residual && tensor_count(residual) != tensor_count(y))
        return tape_fail(t, "mix: the residual does not fit output %s", tensor_shape_text(y, ws));
    const int64_t sizes[RECORD_INTS] = {images, tensor_count(x) / (images * m * k), m, l, k, blocks_first};
    append_mix(t, x, w, residual, y, sizes, scale);
    return y;
}

tensor *op_split_blocks(tape *t, tensor *x, int64_t blocks) {
    if (!x) return NULL;
    char xs[64];
    int64_t k = tensor_columns(x) / blocks;
    if (x->rank != 4 || blocks < 1 || k * blocks != tensor_columns(x))
        return tape_fail(t, "input %s cannot be split into %lld blocks", tensor_shape_text(x, xs), (long long)blocks);
    tensor *y = tape_temporary(t, DTYPE_COUNT, 4, (int64_t[]){x->dim[0] * blocks, x->dim[1], x->dim[2], k});
    const int64_t sizes[RECORD_INTS] = {x->dim[0], x->dim[1] * x->dim[2], blocks, blocks, k, false, true};
    append_mix(t, x, NULL, NULL, y, sizes, 1);
    return y;
}

static void mix_backward(tape *t, const record *r) {
    tensor *x = r->in[IN_X], *w = r->in[IN_W], *dy = tape_get_grad(r->out[0]);
    if (x->needs_grad) {
        const int64_t *i = r->i;
        tensor *dx = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
        const int64_t sizes[RECORD_INTS] = {i[I_IMAGES], i[I_PIXELS], i[I_L], i[I_M], i[I_K], i[I_Y_FIRST], i[I_X_FIRST], !i[I_TRANSPOSED]};
        append_mix(t, dy, w, tape_get_grad(x), dx, sizes, r->f[0]);
        tape_set_grad(x, dx);
    }
    if (w && w->needs_grad) {
        bool accumulate;
        tensor *sum = grad_sum_begin(t, w, &accumulate);
        record *d = tape_append(t, &MIX_WEIGHT, (tensor *[]){dy, x}, 2, &sum, 1);
        memcpy(d->i, r->i, sizeof r->i);
        d->i[I_ACCUMULATE] = accumulate;
        d->f[0] = r->f[0];
        grad_sum_done(t, w, sum);
    }
    grad_add(t, r->in[IN_RESIDUAL], dy);
}

static double mix_flops(const record *r) {
    return r->in[IN_W] ? 2.0 * (double)(r->i[I_IMAGES] * r->i[I_PIXELS] * r->i[I_K]) * (double)(r->i[I_M] * r->i[I_L]) : 0;
}

/* ---- Mix: CPU ---- */

/* Block `block` of a pixel. */
static int64_t block_at(const record *r, bool first, int64_t blocks, int64_t image, int64_t pixel, int64_t block) {
    int64_t pixels = r->i[I_PIXELS];
    int64_t row = first ? (image * blocks + block) * pixels + pixel : (image * pixels + pixel) * blocks + block;
    return row * r->i[I_K];
}

OP_HOT static void add_scaled(float *y, const float *x, float w, int64_t k) {
    for (int64_t j = 0; j < k; j++) y[j] += w * x[j];
}

OP_HOT static float dot(const float *x, const float *y, int64_t k) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < k; j++) sum += x[j] * y[j];
    return sum;
}

static void mix_pixel(const record *r, int64_t image, int64_t pixel) {
    const int64_t *i = r->i;
    int64_t k = i[I_K];
    const float *x = r->in[IN_X]->cpu, *w = r->in[IN_W] ? r->in[IN_W]->cpu : NULL,
                *residual = r->in[IN_RESIDUAL] ? r->in[IN_RESIDUAL]->cpu : NULL;
    for (int64_t l = 0; l < i[I_L]; l++) {
        int64_t at = block_at(r, i[I_Y_FIRST] != 0, i[I_L], image, pixel, l);
        float *y = (float *)r->out[0]->cpu + at;
        if (!w) {
            const float *from = x + block_at(r, i[I_X_FIRST] != 0, i[I_M], image, pixel, l);
            for (int64_t j = 0; j < k; j++) y[j] = from[j] + (residual ? residual[at + j] : 0);
            continue;
        }
        for (int64_t j = 0; j < k; j++) y[j] = residual ? residual[at + j] : 0;
        for (int64_t m = 0; m < i[I_M]; m++)
            add_scaled(y, x + block_at(r, i[I_X_FIRST] != 0, i[I_M], image, pixel, m),
                       r->f[0] * (i[I_TRANSPOSED] ? w[m * i[I_L] + l] : w[l * i[I_M] + m]), k);
    }
}

static void mix_cpu(const record *r, const device *d) {
    (void)d;
    int64_t pixels = r->i[I_PIXELS], total = r->i[I_IMAGES] * pixels;
#pragma omp parallel for schedule(static) if (tensor_count(r->out[0]) > OP_SMALL)
    for (int64_t p = 0; p < total; p++) mix_pixel(r, p / pixels, p % pixels);
}

/* Partial sums are taken over this many parts, whatever the number of threads: results do not depend on it. */
enum { PARTS = 16 };

static void mix_weight_cpu(const record *r, const device *d) {
    (void)d;
    const int64_t *i = r->i, pixels = i[I_PIXELS], total = i[I_IMAGES] * pixels, count = i[I_L] * i[I_M];
    const float *dy = r->in[0]->cpu, *x = r->in[1]->cpu;
    float *partial = r->scratch->cpu, *out = r->out[0]->cpu;
    memset(partial, 0, (size_t)(PARTS * count) * sizeof *partial);
#pragma omp parallel for schedule(static) if (total * i[I_K] * i[I_M] > OP_SMALL)
    for (int part = 0; part < PARTS; part++)
        for (int64_t p = total * part / PARTS; p < total * (part + 1) / PARTS; p++)
            for (int64_t l = 0; l < i[I_L]; l++)
                for (int64_t m = 0; m < i[I_M]; m++)
                    partial[part * count + l * i[I_M] + m] +=
                        dot(dy + block_at(r, i[I_Y_FIRST] != 0, i[I_L], p / pixels, p % pixels, l),
                            x + block_at(r, i[I_X_FIRST] != 0, i[I_M], p / pixels, p % pixels, m), i[I_K]);
    for (int64_t j = 0; j < count; j++) {
        double sum = 0;
        for (int part = 0; part < PARTS; part++) sum += (double)partial[part * count + j];
        out[j] = (i[I_ACCUMULATE] ? out[j] : 0) + r->f[0] * (float)sum;
    }
}

/* ---- Mix: Vulkan ---- */

/* Pixels that one workgroup sums for a weight gradient. */
enum { CHUNK = 64 };

static int64_t chunks_of(const record *r) { return kernel_groups(r->i[I_IMAGES] * r->i[I_PIXELS], CHUNK); }

static size_t mix_weight_scratch(const record *r, const device *d) {
    return (size_t)((d->gpu ? chunks_of(r) : PARTS) * r->i[I_L] * r->i[I_M]) * sizeof(float);
}

static void push_sizes(kernel_call *k, const record *r) {
    for (int i = I_IMAGES; i <= I_Y_FIRST; i++) kernel_push(k, r->i[i]);
}

static void mix_vulkan(const record *r, gpu_recording *rec) {
    const tensor *x = r->in[IN_X], *residual = r->in[IN_RESIDUAL];
    kernel_call k = kernel_named("mix");
    kernel_read_typed(&k, x);
    kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[IN_W] ? r->in[IN_W] : x);
    kernel_read(&k, residual ? residual : x);
    kernel_constant(&k, r->in[IN_W] != NULL);
    kernel_constant(&k, residual != NULL);
    push_sizes(&k, r);
    kernel_push(&k, r->i[I_TRANSPOSED]);
    kernel_push_float(&k, r->f[0]);
    kernel_run_over(&k, rec, tensor_count(r->out[0]));
}

static void mix_weight_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("mix_weight");
    kernel_read_typed(&k, r->in[0]);
    kernel_read_typed(&k, r->in[1]);
    kernel_write(&k, r->scratch);
    push_sizes(&k, r);
    kernel_push(&k, CHUNK);
    kernel_push_float(&k, r->f[0]);
    kernel_run(&k, rec, r->i[I_M], r->i[I_L], chunks_of(r), 0);
    kernel_reduce(rec, r->scratch, r->out[0], 1, chunks_of(r), r->i[I_L] * r->i[I_M], r->i[I_ACCUMULATE] != 0);
}

/* ---- Rotate: the tape ---- */

enum { R_ROWS, R_BLOCKS, R_SIZE, R_STRIDE /* of the butterfly; 0: none */, R_TRANSPOSED, R_ACCUMULATE };

static tensor *append_rotate(tape *t, tensor *x, tensor *blocks, const int64_t *sizes) {
    tensor *y = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    memcpy(tape_append(t, &ROTATE, (tensor *[]){x, blocks}, 2, &y, 1)->i, sizes, RECORD_INTS * sizeof *sizes);
    return y;
}

tensor *op_rotate(tape *t, tensor *x, tensor *blocks, int64_t stride, bool transposed) {
    if (!x || !blocks) return NULL;
    char xs[64], bs[64];
    if (blocks->rank != 3 || blocks->dim[1] != blocks->dim[2] || blocks->dim[0] * blocks->dim[1] != tensor_columns(x) ||
        (stride && tensor_columns(x) % (2 * stride)))
        return tape_fail(t, "rotation: blocks %s do not fit input %s", tensor_shape_text(blocks, bs), tensor_shape_text(x, xs));
    const int64_t sizes[RECORD_INTS] = {tensor_rows(x), blocks->dim[0], blocks->dim[1], stride, transposed};
    return append_rotate(t, x, blocks, sizes);
}

static void rotate_backward(tape *t, const record *r) {
    tensor *x = r->in[0], *blocks = r->in[1], *dy = tape_get_grad(r->out[0]);
    if (x->needs_grad) {
        int64_t sizes[RECORD_INTS];
        memcpy(sizes, r->i, sizeof sizes);
        sizes[R_TRANSPOSED] = !sizes[R_TRANSPOSED];
        grad_add(t, x, append_rotate(t, dy, blocks, sizes));
    }
    if (!blocks->needs_grad) return;
    bool accumulate;
    tensor *sum = grad_sum_begin(t, blocks, &accumulate);
    record *d = tape_append(t, &ROTATE_WEIGHT, (tensor *[]){r->i[R_TRANSPOSED] ? dy : x, r->i[R_TRANSPOSED] ? x : dy}, 2, &sum, 1);
    memcpy(d->i, r->i, sizeof r->i);
    d->i[R_ACCUMULATE] = accumulate;
    grad_sum_done(t, blocks, sum);
}

static double rotate_flops(const record *r) {
    return 2.0 * (double)(r->i[R_ROWS] * r->i[R_BLOCKS]) * (double)(r->i[R_SIZE] * r->i[R_SIZE]);
}

/* ---- Rotate: CPU ---- */

/* Column of the tensor that stands at `at` when blocks are taken: viewed as [c, 2, stride] it becomes [c, stride, 2]. */
static int64_t butterfly(int64_t at, int64_t stride) {
    if (!stride) return at;
    int64_t inside = at % (2 * stride);
    return at - inside + inside % 2 * stride + inside / 2;
}

OP_HOT static void rotate_block(float *y, const float *x, const float *r, int64_t b, bool transposed) {
    if (transposed) {
        for (int64_t i = 0; i < b; i++) y[i] = dot(r + i * b, x, b);
        return;
    }
    memset(y, 0, (size_t)b * sizeof *y);
    for (int64_t i = 0; i < b; i++) add_scaled(y, r + i * b, x[i], b);
}

/* Scratch memory: per part two rows in the blocks' order, and for weight gradients the part's sums. */
static size_t rotate_scratch(const record *r, const device *d) {
    return d->gpu ? 0 : (size_t)(PARTS * 2 * r->i[R_BLOCKS] * r->i[R_SIZE]) * sizeof(float);
}

static void gather_row(float *to, const float *from, int64_t columns, int64_t stride) {
    for (int64_t j = 0; j < columns; j++) to[j] = from[butterfly(j, stride)];
}

static void rotate_cpu(const record *r, const device *d) {
    (void)d;
    int64_t rows = r->i[R_ROWS], b = r->i[R_SIZE], columns = r->i[R_BLOCKS] * b, stride = r->i[R_STRIDE];
    const float *x = r->in[0]->cpu, *blocks = r->in[1]->cpu;
    float *y = r->out[0]->cpu, *scratch = r->scratch->cpu;
#pragma omp parallel for schedule(static) if (rows * columns > OP_SMALL)
    for (int part = 0; part < PARTS; part++) {
        float *in = scratch + part * 2 * columns, *out = in + columns;
        for (int64_t i = rows * part / PARTS; i < rows * (part + 1) / PARTS; i++) {
            gather_row(in, x + i * columns, columns, stride);
            for (int64_t g = 0; g < r->i[R_BLOCKS]; g++)
                rotate_block(out + g * b, in + g * b, blocks + g * b * b, b, r->i[R_TRANSPOSED] != 0);
            for (int64_t j = 0; j < columns; j++) y[i * columns + butterfly(j, stride)] = out[j];
        }
    }
}

static size_t rotate_weight_scratch(const record *r, const device *d);

/* blocks[g, i, j] += sum over rows of left[g, i] right[g, j]; every thread has blocks of its own. */
static void rotate_weight_cpu(const record *r, const device *d) {
    (void)d;
    int64_t rows = r->i[R_ROWS], b = r->i[R_SIZE], columns = r->i[R_BLOCKS] * b, stride = r->i[R_STRIDE];
    const float *left = r->in[0]->cpu, *right = r->in[1]->cpu;
    float *out = r->out[0]->cpu, *scratch = r->scratch->cpu;
#pragma omp parallel for schedule(static) if (rows * columns > OP_SMALL)
    for (int64_t g = 0; g < r->i[R_BLOCKS]; g++) {
        float *sum = out + g * b * b, *row = scratch + g * b;
        if (!r->i[R_ACCUMULATE]) memset(sum, 0, (size_t)(b * b) * sizeof *sum);
        for (int64_t n = 0; n < rows; n++) {
            for (int64_t j = 0; j < b; j++) row[j] = right[n * columns + butterfly(g * b + j, stride)];
            for (int64_t i = 0; i < b; i++) add_scaled(sum + i * b, row, left[n * columns + butterfly(g * b + i, stride)], b);
        }
    }
}

/* ---- Rotate: Vulkan ---- */

static void push_rotation(kernel_call *k, const record *r) {
    for (int i = R_ROWS; i <= R_TRANSPOSED; i++) kernel_push(k, r->i[i]);
}

static void rotate_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("rotate");
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[1]);
    push_rotation(&k, r);
    kernel_run_over(&k, rec, tensor_count(r->out[0]));
}

enum { ROTATE_CHUNK = 256 };

static int64_t rotate_chunks(const record *r) { return kernel_groups(r->i[R_ROWS], ROTATE_CHUNK); }

static size_t rotate_weight_scratch(const record *r, const device *d) {
    int64_t b = r->i[R_SIZE], blocks = r->i[R_BLOCKS];
    return (size_t)(d->gpu ? rotate_chunks(r) * blocks * b * b : blocks * b) * sizeof(float);
}

static void rotate_weight_vulkan(const record *r, gpu_recording *rec) {
    int64_t b = r->i[R_SIZE], blocks = r->i[R_BLOCKS];
    kernel_call k = kernel_named("rotate_weight");
    kernel_read_typed(&k, r->in[0]);
    kernel_read_typed(&k, r->in[1]);
    kernel_write(&k, r->scratch);
    push_rotation(&k, r);
    kernel_push(&k, ROTATE_CHUNK);
    kernel_run(&k, rec, kernel_groups(b * b, 128), blocks, rotate_chunks(r), 0);
    kernel_reduce(rec, r->scratch, r->out[0], 1, rotate_chunks(r), blocks * b * b, r->i[R_ACCUMULATE] != 0);
}

static const op MIX = {
    .name = "mix", .backward = mix_backward, .flops = mix_flops, .run_cpu = mix_cpu, .run_vulkan = mix_vulkan, .in_place = -1};
static const op MIX_WEIGHT = {.name = "mix_weight",
                              .scratch = mix_weight_scratch,
                              .flops = mix_flops,
                              .run_cpu = mix_weight_cpu,
                              .run_vulkan = mix_weight_vulkan,
                              .in_place = -1};
static const op ROTATE = {.name = "rotate",
                          .backward = rotate_backward,
                          .scratch = rotate_scratch,
                          .flops = rotate_flops,
                          .run_cpu = rotate_cpu,
                          .run_vulkan = rotate_vulkan,
                          .in_place = -1};
static const op ROTATE_WEIGHT = {.name = "rotate_weight",
                                 .scratch = rotate_weight_scratch,
                                 .flops = rotate_flops,
                                 .run_cpu = rotate_weight_cpu,
                                 .run_vulkan = rotate_weight_vulkan,
                                 .in_place = -1};
const op *const OP_MIX = &MIX, *const OP_MIX_WEIGHT = &MIX_WEIGHT, *const OP_ROTATE = &ROTATE, *const OP_ROTATE_WEIGHT = &ROTATE_WEIGHT;
