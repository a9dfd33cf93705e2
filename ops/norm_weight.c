/* The gradients of a norm's scale and shift, for adapters that train them:

   dgamma = the sum over rows of h xh, dbeta = the sum of h, h = dy * act'(xh * gamma + beta), xh = (x - mean) * rstd

   Both are computed together; what nobody asked for is a temporary that dies at once. */
#include "ops/kernel.h"
#include "ops/norm.h"
#include "ops/op.h"

#include <string.h>

enum { IN_DY, IN_X, IN_GAMMA, IN_BETA, IN_STATS, INPUTS };
enum { OUT_GAMMA, OUT_BETA, OUTPUTS };
/* Groups 0: every row has statistics of its own, and I_PIXELS counts rows of one image. */
enum { I_IMAGES, I_PIXELS, I_CHANNELS, I_GROUPS, I_SILU, I_ACCUMULATE /* a bit for each output */ };

static const op NORM_WEIGHT;

void grad_add_norm(tape *t, tensor *dy, tensor *x, tensor *gamma, tensor *beta, tensor *stats, int64_t groups, bool silu) {
    if (!gamma->needs_grad && !beta->needs_grad) return;
    tensor *weights[OUTPUTS] = {gamma, beta}, *sums[OUTPUTS];
    int64_t accumulate = 0;
    for (int k = 0; k < OUTPUTS; k++) {
        bool parameter = false;
        sums[k] = weights[k]->needs_grad ? grad_sum_begin(t, weights[k], &parameter)
                                         : tape_temporary(t, DTYPE_F32, weights[k]->rank, weights[k]->dim);
        accumulate |= (int64_t)parameter << k;
    }
    record *r = tape_append(t, &NORM_WEIGHT, (tensor *[]){dy, x, gamma, beta, stats}, INPUTS, sums, OUTPUTS);
    r->i[I_IMAGES] = groups ? x->dim[0] : 1;
    r->i[I_PIXELS] = tensor_rows(x) / r->i[I_IMAGES], r->i[I_CHANNELS] = tensor_columns(x);
    r->i[I_GROUPS] = groups, r->i[I_SILU] = silu, r->i[I_ACCUMULATE] = accumulate;
    for (int k = 0; k < OUTPUTS; k++)
        if (weights[k]->needs_grad) grad_sum_done(t, weights[k], sums[k]);
}

/* ---- CPU ---- */

/* Partial sums are taken over this many parts, whatever the number of threads: results do not depend on it. */
enum { PARTS = 16 };

OP_HOT static void add_row(const float *x, const float *dy, int64_t c, float mean, float rstd, float *dgamma, float *dbeta) {
#pragma omp simd
    for (int64_t j = 0; j < c; j++) {
        dgamma[j] += dy[j] * ((x[j] - mean) * rstd);
        dbeta[j] += dy[j];
    }
}

/* Per channel. */
typedef struct group_constants {
    const float *mean, *rstd, *gamma, *beta;
    bool silu;
} group_constants;

OP_HOT static void add_group_row(const float *x, const float *dy, int64_t c, group_constants k, float *dgamma, float *dbeta) {
    if (k.silu)
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            float xh = (x[j] - k.mean[j]) * k.rstd[j], z = xh * k.gamma[j] + k.beta[j], s = scalar_sigmoid(z);
            float h = dy[j] * (s * (1.0f + z * (1.0f - s)));
            dgamma[j] += h * xh;
            dbeta[j] += h;
        }
    else
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            dgamma[j] += dy[j] * ((x[j] - k.mean[j]) * k.rstd[j]);
            dbeta[j] += dy[j];
        }
}

/* What the statistics of a group are for each of its channels: [images, 2, channels]. */
static void spread_stats(const record *r, float *out) {
    const int64_t c = r->i[I_CHANNELS], groups = r->i[I_GROUPS], width = groups ? c / groups : 0;
    const float *stats = r->in[IN_STATS]->cpu;
    for (int64_t n = 0; groups && n < r->i[I_IMAGES]; n++, stats += 2 * groups, out += 2 * c)
        for (int64_t j = 0; j < c; j++) out[j] = stats[2 * (j / width)], out[c + j] = stats[2 * (j / width) + 1];
}

/* Rows [first, end) of all images. */
static void add_rows(const record *r, int64_t first, int64_t end, const float *spread, float *dgamma, float *dbeta) {
    const int64_t c = r->i[I_CHANNELS], pixels = r->i[I_PIXELS];
    const float *x = r->in[IN_X]->cpu, *dy = r->in[IN_DY]->cpu, *stats = r->in[IN_STATS]->cpu;
    group_constants k = {.gamma = r->in[IN_GAMMA]->cpu, .beta = r->in[IN_BETA]->cpu, .silu = r->i[I_SILU] != 0};
    for (int64_t i = first; i < end; i++) {
        if (!r->i[I_GROUPS]) {
            add_row(x + i * c, dy + i * c, c, stats[2 * i], stats[2 * i + 1], dgamma, dbeta);
            continue;
        }
        k.mean = spread + i / pixels * 2 * c, k.rstd = k.mean + c;
        add_group_row(x + i * c, dy + i * c, c, k, dgamma, dbeta);
    }
}

static void add_parts(float *to, const float *partial, int64_t c, bool accumulate) {
    for (int64_t j = 0; j < c; j++) {
        double sum = 0;
        for (int part = 0; part < PARTS; part++) sum += (double)partial[part * 2 * c + j];
        to[j] = (accumulate ? to[j] : 0) + (float)sum;
    }
}

static void norm_weight_cpu(const record *r, const device *d) {
    (void)d;
    const int64_t c = r->i[I_CHANNELS], rows = r->i[I_IMAGES] * r->i[I_PIXELS];
    float *partial = r->scratch->cpu, *spread = partial + PARTS * 2 * c;
    memset(partial, 0, (size_t)(PARTS * 2 * c) * sizeof *partial);
    spread_stats(r, spread);
#pragma omp parallel for schedule(static) if (rows * c > OP_SMALL)
    for (int part = 0; part < PARTS; part++)
        add_rows(r, rows * part / PARTS, rows * (part + 1) / PARTS, spread, partial + part * 2 * c, partial + (part * 2 + 1) * c);
    for (int k = 0; k < OUTPUTS; k++) add_parts(r->out[k]->cpu, partial + k * c, c, r->i[I_ACCUMULATE] >> k & 1);
}

/* ---- Vulkan ---- */

/* Columns, and threads for each, that end a sum: shaders/norm_weight_finish.comp. */
enum { FINISH_COLUMNS = 16 };

static norm_blocks blocks_of(const record *r) { return norm_blocks_of(r->i[I_IMAGES], r->i[I_PIXELS], r->i[I_CHANNELS], NORM_GRAD_STEP); }

static size_t scratch(const record *r, const device *d) {
    int64_t floats = r->i[I_CHANNELS] * 2, images = r->i[I_IMAGES];
    if (d->gpu) return (size_t)(floats * images * blocks_of(r).blocks) * sizeof(float);
    return (size_t)(floats * (PARTS + (r->i[I_GROUPS] ? images : 0))) * sizeof(float);
}

static void norm_weight_vulkan(const record *r, gpu_recording *rec) {
    const norm_blocks s = blocks_of(r);
    kernel_call k = kernel_named("norm_weight");
    kernel_read_typed(&k, r->in[IN_X]);
    kernel_read_typed(&k, r->in[IN_DY]);
    for (int i = IN_GAMMA; i <= IN_STATS; i++) kernel_read(&k, r->in[i]);
    kernel_write(&k, r->scratch);
    const int64_t constants[] = {s.step, r->i[I_SILU], r->i[I_PIXELS] % NORM_PIXELS == 0, r->i[I_GROUPS] == 0};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(&k, constants[i]);
    const int64_t push[] = {r->i[I_PIXELS], r->i[I_CHANNELS] / s.step, s.block, s.blocks, r->i[I_GROUPS]};
    for (size_t i = 0; i < sizeof push / sizeof *push; i++) kernel_push(&k, push[i]);
    kernel_push_divisor(&k, r->i[I_GROUPS] ? r->i[I_CHANNELS] / r->i[I_GROUPS] : 1);
    kernel_run(&k, rec, s.column_groups, s.blocks, r->i[I_IMAGES], 0);

    k = kernel_named("norm_weight_finish");
    kernel_read(&k, r->scratch);
    kernel_write(&k, r->out[OUT_GAMMA]);
    kernel_write(&k, r->out[OUT_BETA]);
    kernel_push(&k, r->i[I_CHANNELS]);
    kernel_push(&k, r->i[I_IMAGES] * s.blocks);
    kernel_push(&k, r->i[I_ACCUMULATE]);
    kernel_run(&k, rec, kernel_groups(r->i[I_CHANNELS], FINISH_COLUMNS), 1, 1, 0);
}

static const op NORM_WEIGHT = {
    .name = "norm_weight", .scratch = scratch, .run_cpu = norm_weight_cpu, .run_vulkan = norm_weight_vulkan, .in_place = -1};
const op *const OP_NORM_WEIGHT = &NORM_WEIGHT;
