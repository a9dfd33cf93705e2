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

/* Stride: of the first stage's butterfly, 0: none; the CPU takes all stages at once, Vulkan one. */
enum { R_ROWS, R_BLOCKS, R_SIZE, R_STRIDE, R_TRANSPOSED, R_ACCUMULATE, R_STAGES, R_REVERSED /* the last stage first */ };

static tensor *append_rotate(tape *t, tensor *x, tensor *blocks, const int64_t *sizes) {
    tensor *y = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    memcpy(tape_append(t, &ROTATE, (tensor *[]){x, blocks}, 2, &y, 1)->i, sizes, RECORD_INTS * sizeof *sizes);
    return y;
}

tensor *op_rotate(tape *t, tensor *x, tensor *blocks, int64_t stride, bool transposed) {
    if (!x || !blocks) return NULL;
    char xs[64], bs[64];
    const int64_t stages = blocks->rank == 4 ? blocks->dim[0] : 1, *dim = blocks->dim + (blocks->rank == 4);
    if (blocks->rank < 3 || dim[1] != dim[2] || dim[0] * dim[1] != tensor_columns(x) || stages > 30 ||
        (stride && tensor_columns(x) % (2 * stride << (stages - 1))))
        return tape_fail(t, "rotation: blocks %s do not fit input %s", tensor_shape_text(blocks, bs), tensor_shape_text(x, xs));
    if (blocks->rank == 4 && tape_device(t)->gpu) {
        for (int64_t stage = 0; stage < stages; stage++) x = op_rotate(t, x, op_take(t, blocks, stage), stride << stage, transposed);
        return x;
    }
    const int64_t sizes[RECORD_INTS] = {tensor_rows(x), dim[0], dim[1], stride, transposed, 0, stages};
    return append_rotate(t, x, blocks, sizes);
}

static void rotate_backward(tape *t, const record *r) {
    tensor *x = r->in[0], *blocks = r->in[1], *dy = tape_get_grad(r->out[0]);
    if (x->needs_grad) {
        int64_t sizes[RECORD_INTS];
        memcpy(sizes, r->i, sizeof sizes);
        sizes[R_TRANSPOSED] = !sizes[R_TRANSPOSED], sizes[R_REVERSED] = !sizes[R_REVERSED];
        grad_add(t, x, append_rotate(t, dy, blocks, sizes));
    }
    if (!blocks->needs_grad) return;
    bool accumulate;
    tensor *sum = grad_sum_begin(t, blocks, &accumulate);
    /* Of several stages the gradient is found by going through them again. */
    record *d = tape_append(t, &ROTATE_WEIGHT, (tensor *[]){x, dy, r->i[R_STAGES] > 1 ? blocks : NULL}, 3, &sum, 1);
    memcpy(d->i, r->i, sizeof r->i);
    d->i[R_ACCUMULATE] = accumulate;
    grad_sum_done(t, blocks, sum);
}

static double rotate_flops(const record *r) {
    return 2.0 * (double)(r->i[R_STAGES] * r->i[R_ROWS] * r->i[R_BLOCKS]) * (double)(r->i[R_SIZE] * r->i[R_SIZE]);
}

/* ---- Rotate: CPU ---- */

/* Rows are turned LANES at a time, as tiles [columns, LANES]: a butterfly is then another order of lines, and blocks of any size fill
   vectors. Tiles go to at most TURN_PARTS parts in turn, whatever the number of threads: sums do not depend on it. */
enum { LANES = 16, TURN_PARTS = 8 };
/* Left to itself the compiler keeps sums of a tile's lines in memory. */
typedef float line __attribute__((vector_size(LANES * sizeof(float))));

/* Column of the tensor that stands at `at` when blocks are taken: viewed as [c, 2, stride] it becomes [c, stride, 2]. */
static int64_t butterfly(int64_t at, int64_t stride) {
    if (!stride) return at;
    int64_t inside = at % (2 * stride);
    return at - inside + inside % 2 * stride + inside / 2;
}

static int64_t columns_of(const record *r) { return r->i[R_BLOCKS] * r->i[R_SIZE]; }
static int64_t turn_parts(const record *r) {
    int64_t tiles = (r->i[R_ROWS] + LANES - 1) / LANES;
    return tiles < TURN_PARTS ? tiles : TURN_PARTS;
}
static int64_t stage_floats(const record *r) { return columns_of(r) * r->i[R_SIZE]; }

/* Every stage's columns in the order of its blocks, in front of the scratch memory; returns what is behind them. */
static float *make_orders(const record *r) {
    int64_t *order = r->scratch->cpu, columns = columns_of(r);
    for (int64_t stage = 0; stage < r->i[R_STAGES]; stage++, order += columns)
        for (int64_t j = 0; j < columns; j++) order[j] = butterfly(j, r->i[R_STRIDE] << stage);
    return (float *)order;
}

static const int64_t *order_of(const record *r, int64_t stage) { return (const int64_t *)r->scratch->cpu + stage * columns_of(r); }

/* tile[j, lane] = from[lane, j]; the lanes behind the rows are zeros. */
OP_HOT static void fill_tile(float *tile, const float *from, int64_t columns, int64_t rows) {
    if (rows < LANES) memset(tile, 0, (size_t)(columns * LANES) * sizeof *tile);
    int64_t j = 0;
    for (; rows >= LANES && j + LANES <= columns; j += LANES)
        for (int64_t lane = 0; lane < LANES; lane++)
            for (int64_t k = 0; k < LANES; k++) tile[(j + k) * LANES + lane] = from[lane * columns + j + k];
    for (int64_t lane = 0; lane < (rows < LANES ? rows : LANES); lane++)
        for (int64_t k = j; k < columns; k++) tile[k * LANES + lane] = from[lane * columns + k];
}

OP_HOT static void empty_tile(float *to, const float *tile, int64_t columns, int64_t rows) {
    int64_t j = 0;
    for (; rows >= LANES && j + LANES <= columns; j += LANES)
        for (int64_t lane = 0; lane < LANES; lane++)
            for (int64_t k = 0; k < LANES; k++) to[lane * columns + j + k] = tile[(j + k) * LANES + lane];
    for (int64_t lane = 0; lane < (rows < LANES ? rows : LANES); lane++)
        for (int64_t k = j; k < columns; k++) to[lane * columns + k] = tile[k * LANES + lane];
}

/* Of one block: y[j] = sum over i of r[i, j] x[i], lines of tiles; elements of r are `row` and `column` apart. */
OP_HOT static void turn_block(float *y, const float *x, const int64_t *order, const float *r, int64_t b, int64_t row, int64_t column) {
    int64_t j = 0;
    line in, sum[4];
    for (; j + 4 <= b; j += 4) {
        line s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (int64_t i = 0; i < b; i++) {
            const float *f = r + i * row + j * column;
            memcpy(&in, x + order[i] * LANES, sizeof in);
            s0 += f[0] * in, s1 += f[column] * in, s2 += f[2 * column] * in, s3 += f[3 * column] * in;
        }
        sum[0] = s0, sum[1] = s1, sum[2] = s2, sum[3] = s3;
        for (int k = 0; k < 4; k++) memcpy(y + order[j + k] * LANES, &sum[k], sizeof(line));
    }
    for (; j < b; j++) {
        line s = {0};
        for (int64_t i = 0; i < b; i++) {
            memcpy(&in, x + order[i] * LANES, sizeof in);
            s += r[i * row + j * column] * in;
        }
        memcpy(y + order[j] * LANES, &s, sizeof s);
    }
}

static void turn_tile(const record *r, float *y, const float *x, const float *matrices, int64_t stage, bool transposed) {
    int64_t b = r->i[R_SIZE];
    const int64_t *order = order_of(r, stage);
    const float *m = matrices + stage * stage_floats(r);
    for (int64_t g = 0; g < r->i[R_BLOCKS]; g++, m += b * b, order += b)
        turn_block(y, x, order, m, b, transposed ? 1 : b, transposed ? b : 1);
}

static void rotate_cpu(const record *r, const device *d) {
    (void)d;
    int64_t rows = r->i[R_ROWS], columns = columns_of(r), stages = r->i[R_STAGES], parts = turn_parts(r);
    const float *x = r->in[0]->cpu, *matrices = r->in[1]->cpu;
    float *y = r->out[0]->cpu, *work = make_orders(r);
#pragma omp parallel for schedule(static, 1) if (rows * columns > OP_SMALL)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t at = part * LANES; at < rows; at += parts * LANES) {
            float *tiles[] = {work + part * 2 * columns * LANES, work + (part * 2 + 1) * columns * LANES};
            fill_tile(tiles[0], x + at * columns, columns, rows - at);
            for (int64_t k = 0; k < stages; k++)
                turn_tile(r, tiles[(k + 1) % 2], tiles[k % 2], matrices, r->i[R_REVERSED] ? stages - 1 - k : k, r->i[R_TRANSPOSED] != 0);
            empty_tile(y + at * columns, tiles[stages % 2], columns, rows - at);
        }
}

/* sums[i, j] += the sum over lanes of x[i] y[j], of one block. */
OP_HOT static void add_outer(float *sums, const float *x, const float *y, const int64_t *order, int64_t b) {
    for (int64_t first = 0; first < b; first += LANES) {
        int64_t width = b - first < LANES ? b - first : LANES;
        float across[LANES][LANES];
        memset(across, 0, sizeof across);
        for (int64_t j = 0; j < width; j++)
            for (int64_t lane = 0; lane < LANES; lane++) across[lane][j] = y[order[first + j] * LANES + lane];
        for (int64_t i = 0; i < b; i += 4) {
            /* Of the last few, some twice. */
            int64_t at[4];
            for (int64_t k = 0; k < 4; k++) at[k] = i + k < b ? i + k : b - 1;
            const float *x0 = x + order[at[0]] * LANES, *x1 = x + order[at[1]] * LANES, *x2 = x + order[at[2]] * LANES,
                        *x3 = x + order[at[3]] * LANES;
            line in, s[4], s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
            for (int64_t lane = 0; lane < LANES; lane++) {
                memcpy(&in, across[lane], sizeof in);
                s0 += x0[lane] * in, s1 += x1[lane] * in, s2 += x2[lane] * in, s3 += x3[lane] * in;
            }
            s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3;
            for (int64_t k = 0; k < 4 && i + k < b; k++)
                for (int64_t j = 0; j < width; j++) sums[(i + k) * b + first + j] += s[k][j];
        }
    }
}

/* A tile's share: through all stages and back again. tiles: one for each stage's input, and two. */
static void add_tile(const record *r, float *sums, float *tiles, int64_t at) {
    int64_t rows = r->i[R_ROWS] - at, columns = columns_of(r), stages = r->i[R_STAGES], b = r->i[R_SIZE], size = columns * LANES;
    const float *matrices = stages > 1 ? r->in[2]->cpu : NULL;
    bool transposed = r->i[R_TRANSPOSED] != 0;
    float *grad = tiles + stages * size, *next = grad + size;
    fill_tile(tiles, (const float *)r->in[0]->cpu + at * columns, columns, rows);
    fill_tile(grad, (const float *)r->in[1]->cpu + at * columns, columns, rows);
    for (int64_t k = 0; k + 1 < stages; k++) turn_tile(r, tiles + (k + 1) * size, tiles + k * size, matrices, k, transposed);
    for (int64_t k = stages - 1; k >= 0; k--) {
        const float *x = tiles + k * size;
        for (int64_t g = 0; g < r->i[R_BLOCKS]; g++)
            add_outer(sums + k * stage_floats(r) + g * b * b, transposed ? grad : x, transposed ? x : grad, order_of(r, k) + g * b, b);
        if (k == 0) return;
        turn_tile(r, next, grad, matrices, k, !transposed);
        float *swap = grad;
        grad = next, next = swap;
    }
}

static void rotate_weight_cpu(const record *r, const device *d) {
    (void)d;
    int64_t rows = r->i[R_ROWS], columns = columns_of(r), count = r->i[R_STAGES] * stage_floats(r), parts = turn_parts(r);
    float *out = r->out[0]->cpu, *sums = make_orders(r), *tiles = sums + parts * count;
    memset(sums, 0, (size_t)(parts * count) * sizeof *sums);
#pragma omp parallel for schedule(static, 1) if (rows * columns > OP_SMALL)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t at = part * LANES; at < rows; at += parts * LANES)
            add_tile(r, sums + part * count, tiles + part * (r->i[R_STAGES] + 2) * columns * LANES, at);
    for (int64_t j = 0; j < count; j++) {
        float sum = r->i[R_ACCUMULATE] ? out[j] : 0;
        for (int64_t part = 0; part < parts; part++) sum += sums[part * count + j];
        out[j] = sum;
    }
}

static size_t turn_scratch(const record *r, int64_t tiles, int64_t sums) {
    int64_t columns = columns_of(r), floats = turn_parts(r) * (tiles * columns * LANES + sums);
    return (size_t)(r->i[R_STAGES] * columns) * sizeof(int64_t) + (size_t)floats * sizeof(float);
}

static size_t rotate_scratch(const record *r, const device *d) { return d->gpu ? 0 : turn_scratch(r, 2, 0); }

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
    if (!d->gpu) return turn_scratch(r, r->i[R_STAGES] + 2, r->i[R_STAGES] * stage_floats(r));
    return (size_t)(rotate_chunks(r) * stage_floats(r)) * sizeof(float);
}

static void rotate_weight_vulkan(const record *r, gpu_recording *rec) {
    int64_t b = r->i[R_SIZE], blocks = r->i[R_BLOCKS];
    bool transposed = r->i[R_TRANSPOSED] != 0;
    kernel_call k = kernel_named("rotate_weight");
    kernel_read_typed(&k, r->in[transposed ? 1 : 0]);
    kernel_read_typed(&k, r->in[transposed ? 0 : 1]);
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
