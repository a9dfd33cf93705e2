/* Group normalization over channels-last images (with optional SiLU behind it), layer normalization over rows, and their gradients with
   respect to the input; those with respect to gamma and beta are in norm_weight.c.

   forward   y = act(xh * gamma + beta), xh = (x - mean) * rstd
   backward  dx = rstd * (g - mean(g) - xh * mean(g * xh)), g = gamma * dy * act'(xh * gamma + beta), means over the normalized set; the
             gradient that x has so far is added in the same step */
#include "ops/norm.h"
#include "base/memory.h"
#include "ops/kernel.h"
#include "ops/op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { IN_X, IN_GAMMA, IN_BETA, INPUTS };
/* Of the gradients, whose scale and shift and means come from the forward pass: */
enum { GRAD_DY, GRAD_X, GRAD_GAMMA, GRAD_BETA, GRAD_STATS, GRAD_PRIOR, GRAD_INPUTS };
enum { I_IMAGES, I_PIXELS, I_CHANNELS, I_GROUPS, I_SILU };

/* Partial sums of an image are taken over this many parts, whatever the number of threads: results do not depend on it. */
enum { PARTS = 16 };

static const op GROUP_NORM, GROUP_NORM_GRAD, LAYER_NORM, LAYER_NORM_GRAD;

tensor *op_group_norm(tape *t, tensor *x, tensor *gamma, tensor *beta, int groups, float eps, bool silu) {
    if (!x || !gamma || !beta) return NULL;
    char shape[64];
    int64_t c = tensor_columns(x);
    if (x->rank != 4 || groups < 1 || c % groups || tensor_count(gamma) != c || tensor_count(beta) != c)
        return tape_fail(t, "group norm %s: input %s does not fit %d groups and its weight", gamma->name ? gamma->name : "",
                         tensor_shape_text(x, shape), groups);
    tensor *y = tape_temporary(t, DTYPE_COUNT, 4, x->dim);
    tensor *stats = tape_temporary(t, DTYPE_F32, 3, (int64_t[]){x->dim[0], groups, 2}); /* mean, 1 / standard deviation */
    record *r = tape_append(t, &GROUP_NORM, (tensor *[]){x, gamma, beta}, INPUTS, (tensor *[]){y, stats}, 2);
    r->i[I_IMAGES] = x->dim[0], r->i[I_PIXELS] = x->dim[1] * x->dim[2], r->i[I_CHANNELS] = c, r->i[I_GROUPS] = groups, r->i[I_SILU] = silu;
    r->f[0] = eps;
    return y;
}

tensor *op_layer_norm(tape *t, tensor *x, tensor *gamma, tensor *beta, float eps) {
    if (!x || !gamma || !beta) return NULL;
    char shape[64];
    int64_t c = tensor_columns(x);
    if (tensor_count(gamma) != c || tensor_count(beta) != c)
        return tape_fail(t, "layer norm %s: input %s does not fit its weight", gamma->name ? gamma->name : "", tensor_shape_text(x, shape));
    tensor *y = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    tensor *stats = tape_temporary(t, DTYPE_F32, 2, (int64_t[]){tensor_rows(x), 2});
    record *r = tape_append(t, &LAYER_NORM, (tensor *[]){x, gamma, beta}, INPUTS, (tensor *[]){y, stats}, 2);
    r->i[I_PIXELS] = tensor_rows(x), r->i[I_CHANNELS] = c;
    r->f[0] = eps;
    return y;
}

static void backward(tape *t, const record *r) {
    tensor *x = r->in[IN_X];
    grad_add_norm(t, tape_get_grad(r->out[0]), x, r->in[IN_GAMMA], r->in[IN_BETA], r->out[1], r->i[I_GROUPS], r->i[I_SILU] != 0);
    if (!x->needs_grad) return;
    tensor *dx = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    const op *rule = r->op == &GROUP_NORM ? &GROUP_NORM_GRAD : &LAYER_NORM_GRAD;
    tensor *in[] = {tape_get_grad(r->out[0]), x, r->in[IN_GAMMA], r->in[IN_BETA], r->out[1], tape_get_grad(x)};
    record *d = tape_append(t, rule, in, GRAD_INPUTS, &dx, 1);
    memcpy(d->i, r->i, sizeof r->i);
    d->f[0] = r->f[0];
    tape_set_grad(x, dx);
}

/* ---- CPU ---- */

static narrowing grad_narrow(const record *r, const device *d) { return r->in[GRAD_PRIOR] ? (narrowing){0} : narrow_result(r, d); }

static void add_prior(const record *r) {
    if (!r->in[GRAD_PRIOR]) return;
    const float *prior = r->in[GRAD_PRIOR]->cpu;
    float *dx = r->out[0]->cpu;
    int64_t n = tensor_count(r->out[0]);
#pragma omp parallel for schedule(static) if (n > OP_SMALL)
    for (int64_t i = 0; i < n; i++) dx[i] += prior[i];
}

static float silu_slope(float z) {
    float s = scalar_sigmoid(z);
    return s * (1.0f + z * (1.0f - s));
}

OP_HOT static void sum_rows(const float *x, const float *centre, int64_t rows, int64_t c, float *sums) {
    for (int64_t i = 0; i < rows; i++, x += c)
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            float d = centre ? (x[j] - centre[j]) * (x[j] - centre[j]) : x[j];
            sums[j] += d;
        }
}

/* Sums over the pixels of image n: per channel x, or (x - centre)^2. partial: [PARTS, c]. */
static void image_sums(const float *x, const float *centre, int64_t pixels, int64_t c, float *partial, double *sums) {
    memset(partial, 0, (size_t)(PARTS * c) * sizeof *partial);
#pragma omp parallel for schedule(static) if (pixels * c > OP_SMALL)
    for (int part = 0; part < PARTS; part++) {
        int64_t first = pixels * part / PARTS, end = pixels * (part + 1) / PARTS;
        /* Short runs keep fp32 sums exact enough; the runs are added up in double by the caller's loop over parts. */
        sum_rows(x + first * c, centre, end - first, c, partial + part * c);
    }
    for (int64_t j = 0; j < c; j++) {
        sums[j] = 0;
        for (int part = 0; part < PARTS; part++) sums[j] += (double)partial[part * c + j];
    }
}

static size_t vulkan_scratch(const record *r, const device *d);

static size_t group_scratch(const record *r, const device *d) {
    return d->gpu ? vulkan_scratch(r, d) : (size_t)r->i[I_CHANNELS] * (PARTS * 2 * sizeof(float) + 6 * sizeof(double));
}

OP_HOT static void normalize_rows(const float *x, float *y, int64_t rows, int64_t c, const float *a, const float *b, bool silu) {
    for (int64_t i = 0; i < rows; i++, x += c, y += c) {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) y[j] = x[j] * a[j] + b[j];
        if (silu)
#pragma omp simd
            for (int64_t j = 0; j < c; j++) y[j] *= scalar_sigmoid(y[j]);
    }
}

OP_HOT static void normalize_rows_narrow(const float *x, uint16_t *y, int64_t rows, int64_t c, const float *a, const float *b, bool silu) {
    for (int64_t i = 0; i < rows; i++, x += c, y += c) {
        if (silu)
#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                float z = x[j] * a[j] + b[j];
                y[j] = scalar_bfloat(z * scalar_sigmoid(z));
            }
        else
#pragma omp simd
            for (int64_t j = 0; j < c; j++) y[j] = scalar_bfloat(x[j] * a[j] + b[j]);
    }
}

static void group_norm_cpu(const record *r, const device *d) {
    (void)d;
    int64_t pixels = r->i[I_PIXELS], c = r->i[I_CHANNELS], groups = r->i[I_GROUPS], width = c / groups;
    const float *gamma = r->in[IN_GAMMA]->cpu, *beta = r->in[IN_BETA]->cpu;
    double *sums = r->scratch->cpu;
    float *partial = (float *)(sums + c), *a = partial + PARTS * c, *b = a + c, *stats = r->out[1]->cpu;
    for (int64_t n = 0; n < r->i[I_IMAGES]; n++, stats += 2 * groups) {
        const float *x = (const float *)r->in[IN_X]->cpu + n * pixels * c;
        image_sums(x, NULL, pixels, c, partial, sums);
        for (int64_t j = 0; j < c; j++) {
            double sum = 0;
            for (int64_t i = j / width * width; i < (j / width + 1) * width; i++) sum += sums[i];
            a[j] = (float)(sum / (double)(pixels * width));
        }
        image_sums(x, a, pixels, c, partial, sums);
        for (int64_t g = 0; g < groups; g++) {
            double sum = 0;
            for (int64_t i = g * width; i < (g + 1) * width; i++) sum += sums[i];
            stats[2 * g] = a[g * width];
            stats[2 * g + 1] = (float)(1.0 / sqrt(sum / (double)(pixels * width) + (double)r->f[0]));
        }
        for (int64_t j = 0; j < c; j++) {
            a[j] = gamma[j] * stats[2 * (j / width) + 1];
            b[j] = beta[j] - stats[2 * (j / width)] * a[j];
        }
#pragma omp parallel for schedule(static) if (pixels * c > OP_SMALL)
        for (int part = 0; part < PARTS; part++) {
            int64_t first = pixels * part / PARTS, rows = pixels * (part + 1) / PARTS - first, at = (n * pixels + first) * c;
            bool silu = r->i[I_SILU] != 0;
            if (r->out[0]->type == DTYPE_BF16)
                normalize_rows_narrow(x + first * c, (uint16_t *)r->out[0]->cpu + at, rows, c, a, b, silu);
            else
                normalize_rows(x + first * c, (float *)r->out[0]->cpu + at, rows, c, a, b, silu);
        }
    }
}

/* g = gamma dy act'(z) for a row; per channel sums of g and g xh. */
OP_HOT static void grad_row_sums(const float *x, const float *dy, int64_t c, const float *mean, const float *rstd, const float *gamma,
                                 const float *beta, bool silu, float *g_sum, float *gx_sum) {
#pragma omp simd
    for (int64_t j = 0; j < c; j++) {
        float xh = (x[j] - mean[j]) * rstd[j], g = gamma[j] * dy[j];
        if (silu) g *= silu_slope(xh * gamma[j] + beta[j]);
        g_sum[j] += g;
        gx_sum[j] += g * xh;
    }
}

/* Per channel. */
typedef struct grad_constants {
    const float *mean, *rstd, *gamma, *beta, *g_mean, *gx_mean;
    bool silu;
} grad_constants;

static inline float grad_element(float x, float dy, int64_t j, const grad_constants *k) {
    float xh = (x - k->mean[j]) * k->rstd[j], g = k->gamma[j] * dy;
    if (k->silu) g *= silu_slope(xh * k->gamma[j] + k->beta[j]);
    return k->rstd[j] * (g - k->g_mean[j] - xh * k->gx_mean[j]);
}

OP_HOT static void grad_row(const float *x, const float *dy, float *dx, int64_t c, grad_constants k) {
#pragma omp simd
    for (int64_t j = 0; j < c; j++) dx[j] = grad_element(x[j], dy[j], j, &k);
}

OP_HOT static void grad_row_narrow(const float *x, const float *dy, uint16_t *dx, int64_t c, grad_constants k) {
#pragma omp simd
    for (int64_t j = 0; j < c; j++) dx[j] = scalar_bfloat(grad_element(x[j], dy[j], j, &k));
}

static void group_norm_grad_cpu(const record *r, const device *d) {
    (void)d;
    int64_t pixels = r->i[I_PIXELS], c = r->i[I_CHANNELS], groups = r->i[I_GROUPS], width = c / groups;
    bool silu = r->i[I_SILU] != 0;
    const float *gamma = r->in[2]->cpu, *beta = r->in[3]->cpu, *stats = r->in[4]->cpu;
    float *partial = r->scratch->cpu, *mean = partial + 2 * PARTS * c, *rstd = mean + c, *g_mean = rstd + c, *gx_mean = g_mean + c;
    for (int64_t n = 0; n < r->i[I_IMAGES]; n++, stats += 2 * groups) {
        const float *dy = (const float *)r->in[0]->cpu + n * pixels * c, *x = (const float *)r->in[1]->cpu + n * pixels * c;
        for (int64_t j = 0; j < c; j++) mean[j] = stats[2 * (j / width)], rstd[j] = stats[2 * (j / width) + 1];
        memset(partial, 0, (size_t)(2 * PARTS * c) * sizeof *partial);
#pragma omp parallel for schedule(static) if (pixels * c > OP_SMALL)
        for (int part = 0; part < PARTS; part++)
            for (int64_t i = pixels * part / PARTS; i < pixels * (part + 1) / PARTS; i++)
                grad_row_sums(x + i * c, dy + i * c, c, mean, rstd, gamma, beta, silu, partial + part * c, partial + (PARTS + part) * c);
        for (int64_t g = 0; g < groups; g++) {
            double sum = 0, sum_x = 0;
            for (int64_t j = g * width; j < (g + 1) * width; j++)
                for (int part = 0; part < PARTS; part++)
                    sum += (double)partial[part * c + j], sum_x += (double)partial[(PARTS + part) * c + j];
            for (int64_t j = g * width; j < (g + 1) * width; j++)
                g_mean[j] = (float)(sum / (double)(pixels * width)), gx_mean[j] = (float)(sum_x / (double)(pixels * width));
        }
#pragma omp parallel for schedule(static) if (pixels * c > OP_SMALL)
        for (int64_t i = 0; i < pixels; i++) {
            const grad_constants k = {mean, rstd, gamma, beta, g_mean, gx_mean, silu};
            int64_t at = (n * pixels + i) * c;
            if (r->out[0]->type == DTYPE_BF16)
                grad_row_narrow(x + i * c, dy + i * c, (uint16_t *)r->out[0]->cpu + at, c, k);
            else
                grad_row(x + i * c, dy + i * c, (float *)r->out[0]->cpu + at, c, k);
        }
    }
    add_prior(r);
}

/* stats: mean, 1 / standard deviation */
OP_HOT static void layer_norm_stats(const float *x, int64_t c, float eps, float *stats) {
    double sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < c; j++) sum += (double)x[j];
    float mean = (float)(sum / (double)c);
#pragma omp simd reduction(+ : square)
    for (int64_t j = 0; j < c; j++) square += (double)((x[j] - mean) * (x[j] - mean));
    stats[0] = mean, stats[1] = (float)(1.0 / sqrt(square / (double)c + (double)eps));
}

OP_HOT static void layer_norm_row(const float *x, float *y, int64_t c, const float *gamma, const float *beta, const float *stats) {
    float mean = stats[0], rstd = stats[1];
#pragma omp simd
    for (int64_t j = 0; j < c; j++) y[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
}

OP_HOT static void layer_norm_row_narrow(const float *x, uint16_t *y, int64_t c, const float *gamma, const float *beta,
                                         const float *stats) {
    float mean = stats[0], rstd = stats[1];
#pragma omp simd
    for (int64_t j = 0; j < c; j++) y[j] = scalar_bfloat((x[j] - mean) * rstd * gamma[j] + beta[j]);
}

static void layer_norm_cpu(const record *r, const device *d) {
    (void)d;
    int64_t c = r->i[I_CHANNELS];
    const float *x = r->in[IN_X]->cpu, *gamma = r->in[IN_GAMMA]->cpu, *beta = r->in[IN_BETA]->cpu;
    float *stats = r->out[1]->cpu;
#pragma omp parallel for schedule(static) if (r->i[I_PIXELS] * c > OP_SMALL)
    for (int64_t i = 0; i < r->i[I_PIXELS]; i++) {
        layer_norm_stats(x + i * c, c, r->f[0], stats + 2 * i);
        if (r->out[0]->type == DTYPE_BF16)
            layer_norm_row_narrow(x + i * c, (uint16_t *)r->out[0]->cpu + i * c, c, gamma, beta, stats + 2 * i);
        else
            layer_norm_row(x + i * c, (float *)r->out[0]->cpu + i * c, c, gamma, beta, stats + 2 * i);
    }
}

OP_HOT static void layer_norm_grad_row(const float *x, const float *dy, float *dx, int64_t c, const float *gamma, const float *stats) {
    double sum = 0, sum_x = 0;
    float mean = stats[0], rstd = stats[1];
#pragma omp simd reduction(+ : sum, sum_x)
    for (int64_t j = 0; j < c; j++) {
        float g = gamma[j] * dy[j];
        sum += (double)g, sum_x += (double)(g * (x[j] - mean) * rstd);
    }
    float g_mean = (float)(sum / (double)c), gx_mean = (float)(sum_x / (double)c);
#pragma omp simd
    for (int64_t j = 0; j < c; j++) dx[j] = rstd * (gamma[j] * dy[j] - g_mean - (x[j] - mean) * rstd * gx_mean);
}

static void layer_norm_grad_cpu(const record *r, const device *d) {
    (void)d;
    int64_t c = r->i[I_CHANNELS];
    const float *dy = r->in[0]->cpu, *x = r->in[1]->cpu, *stats = r->in[4]->cpu;
    float *dx = r->out[0]->cpu;
#pragma omp parallel for schedule(static) if (r->i[I_PIXELS] * c > OP_SMALL)
    for (int64_t i = 0; i < r->i[I_PIXELS]; i++) layer_norm_grad_row(x + i * c, dy + i * c, dx + i * c, c, r->in[2]->cpu, stats + 2 * i);
    add_prior(r);
}

/* ---- Vulkan: group norm ---- */

enum {
    GROUP_THREADS = 256, /* of a workgroup that holds a group of channels: shaders/group_in_workgroup.glsl */
    HELD = 96,           /* elements of it in a thread's registers, */
    GRAD_HELD = 64,      /* with as many gradients, */
    SMALL_HELD = 16,     /* and where small programs are better */
    MOST_BLOCK = 16,     /* times NORM_PIXELS */
    BLOCKS_WANTED = 160, /* workgroups that keep a card busy */
    FINISH_THREADS = 128
};

static bool is_grad(const record *r) { return r->op == &GROUP_NORM_GRAD; }
static int64_t group_width(const record *r) { return r->i[I_CHANNELS] / r->i[I_GROUPS]; }
static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

/* One workgroup a group and image, which reads everything once. */
typedef struct group_shape {
    int64_t step, columns, chunks, threads;
} group_shape;

/* False: too large for that, or wider accesses are possible otherwise. */
static bool fits_workgroup(const record *r, const gpu *on, group_shape *s) {
    int64_t pixels = r->i[I_PIXELS], held = gpu_get_info(on)->small_kernels ? SMALL_HELD : is_grad(r) ? GRAD_HELD : HELD;
    s->step = kernel_step(group_width(r));
    s->columns = group_width(r) / s->step;
    if (s->step < at_most(kernel_step(r->i[I_CHANNELS]), 4) || s->columns > GROUP_THREADS) return false;
    s->chunks = kernel_groups(pixels, GROUP_THREADS / s->columns);
    s->threads = kernel_groups(pixels, s->chunks) * s->columns;
    return s->chunks * s->step <= held;
}

norm_blocks norm_blocks_of(int64_t images, int64_t pixels, int64_t channels, int64_t most_step) {
    norm_blocks s = {.step = at_most(kernel_step(channels), most_step)};
    s.column_groups = kernel_groups(channels / s.step, s.step == 8 ? 8 : 16);
    int64_t rounds = kernel_groups(pixels, NORM_PIXELS) * s.column_groups * images / BLOCKS_WANTED;
    s.block = NORM_PIXELS * (rounds < 1 ? 1 : at_most(rounds, MOST_BLOCK));
    s.blocks = kernel_groups(pixels, s.block);
    return s;
}

/* Three dispatches: sums over blocks of pixels, their end, and the result. */
static norm_blocks blocks_of(const record *r) {
    return norm_blocks_of(r->i[I_IMAGES], r->i[I_PIXELS], r->i[I_CHANNELS], is_grad(r) ? NORM_GRAD_STEP : 8);
}

/* Partial sums, then the means of the gradient: pairs of floats. */
static size_t parts_bytes(const record *r) { return (size_t)(r->i[I_IMAGES] * blocks_of(r).blocks * r->i[I_CHANNELS]) * 2 * sizeof(float); }
static size_t means_bytes(const record *r) { return (size_t)(r->i[I_IMAGES] * r->i[I_GROUPS]) * 2 * sizeof(float); }
static size_t means_begin(const record *r) { return (parts_bytes(r) + 255) / 256 * 256; /* any device's offset alignment */ }

static size_t vulkan_scratch(const record *r, const device *d) {
    group_shape s;
    return fits_workgroup(r, d->gpu, &s) ? 0 : means_begin(r) + means_bytes(r);
}

static gpu_range parts_range(const record *r) { return (gpu_range){r->scratch->gpu.buffer, r->scratch->gpu.offset, parts_bytes(r)}; }

static gpu_range means_range(const record *r) {
    return (gpu_range){r->scratch->gpu.buffer, r->scratch->gpu.offset + means_begin(r), means_bytes(r)};
}

static void run_in_workgroup(kernel_call *k, const record *r, gpu_recording *rec, const group_shape *s) {
    const int64_t constants[] = {s->threads, s->step, s->columns, s->chunks, r->i[I_SILU]};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(k, constants[i]);
    if (is_grad(r)) kernel_constant(k, r->in[GRAD_PRIOR] != NULL);
    kernel_push(k, r->i[I_PIXELS]);
    kernel_push(k, r->i[I_GROUPS]);
    kernel_push_float(k, 1.0f / (float)(r->i[I_PIXELS] * group_width(r)));
    kernel_push_float(k, r->f[0]);
    kernel_run(k, rec, r->i[I_GROUPS], r->i[I_IMAGES], 1, 0);
}

static bool whole_blocks(const record *r) { return r->i[I_PIXELS] % NORM_PIXELS == 0; }

static void run_blocks(kernel_call *k, const record *r, gpu_recording *rec) {
    norm_blocks s = blocks_of(r);
    const int64_t push[] = {r->i[I_PIXELS], r->i[I_CHANNELS] / s.step, s.block, s.blocks, r->i[I_GROUPS]};
    for (size_t i = 0; i < sizeof push / sizeof *push; i++) kernel_push(k, push[i]);
    kernel_push_divisor(k, group_width(r));
    kernel_run(k, rec, s.column_groups, s.blocks, r->i[I_IMAGES], 0);
}

static void finish(const record *r, gpu_recording *rec, gpu_range stats) {
    norm_blocks s = blocks_of(r);
    kernel_call k = kernel_named("group_norm_finish");
    kernel_constant(&k, FINISH_THREADS);
    kernel_constant(&k, is_grad(r));
    kernel_bind(&k, parts_range(r), false);
    kernel_bind(&k, stats, true);
    kernel_push(&k, r->i[I_PIXELS]);
    kernel_push(&k, r->i[I_GROUPS]);
    kernel_push(&k, group_width(r));
    kernel_push_divisor(&k, group_width(r));
    kernel_push(&k, s.block);
    kernel_push(&k, s.blocks);
    kernel_push_float(&k, r->f[0]);
    kernel_run(&k, rec, r->i[I_GROUPS], r->i[I_IMAGES], 1, 0);
}

/* x, y, gamma, beta and stats: what both forward kernels bind. */
static kernel_call forward_call(const char *name, const record *r, bool writes_stats) {
    kernel_call k = kernel_named(name);
    kernel_read_typed(&k, r->in[IN_X]);
    kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[IN_GAMMA]);
    kernel_read(&k, r->in[IN_BETA]);
    kernel_bind(&k, r->out[1]->gpu, writes_stats);
    return k;
}

static void group_norm_vulkan(const record *r, gpu_recording *rec) {
    group_shape in_workgroup;
    if (fits_workgroup(r, gpu_recording_device(rec), &in_workgroup)) {
        kernel_call k = forward_call("group_norm", r, true);
        run_in_workgroup(&k, r, rec, &in_workgroup);
        return;
    }
    kernel_call k = kernel_named("group_norm_stats");
    kernel_read_typed(&k, r->in[IN_X]);
    kernel_bind(&k, parts_range(r), true);
    kernel_constant(&k, blocks_of(r).step);
    kernel_constant(&k, r->in[IN_X]->type == DTYPE_F32);
    kernel_constant(&k, whole_blocks(r));
    run_blocks(&k, r, rec);

    finish(r, rec, r->out[1]->gpu);

    k = forward_call("group_norm_apply", r, false);
    kernel_constant(&k, blocks_of(r).step);
    kernel_constant(&k, r->i[I_SILU]);
    kernel_constant(&k, whole_blocks(r));
    run_blocks(&k, r, rec);
}

/* x, dy, (dx,) gamma, beta and stats. */
static kernel_call grad_call(const char *name, const record *r, bool writes_dx) {
    kernel_call k = kernel_named(name);
    kernel_read_typed(&k, r->in[GRAD_X]);
    kernel_read_typed(&k, r->in[GRAD_DY]);
    if (writes_dx) kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[GRAD_GAMMA]);
    if (r->op == &GROUP_NORM_GRAD) kernel_read(&k, r->in[GRAD_BETA]);
    kernel_read(&k, r->in[GRAD_STATS]);
    return k;
}

/* The binding is always there. */
static void read_prior(kernel_call *k, const record *r) { kernel_read(k, r->in[GRAD_PRIOR] ? r->in[GRAD_PRIOR] : r->in[GRAD_X]); }

static void group_norm_grad_vulkan(const record *r, gpu_recording *rec) {
    group_shape in_workgroup;
    if (fits_workgroup(r, gpu_recording_device(rec), &in_workgroup)) {
        kernel_call k = grad_call("group_norm_backward", r, true);
        read_prior(&k, r);
        run_in_workgroup(&k, r, rec, &in_workgroup);
        return;
    }
    const int64_t constants[] = {blocks_of(r).step, r->i[I_SILU], whole_blocks(r), r->in[GRAD_PRIOR] != NULL};
    kernel_call k = grad_call("group_norm_backward_stats", r, false);
    kernel_bind(&k, parts_range(r), true);
    for (int i = 0; i < 3; i++) kernel_constant(&k, constants[i]);
    run_blocks(&k, r, rec);

    finish(r, rec, means_range(r));

    k = grad_call("group_norm_backward_apply", r, true);
    kernel_bind(&k, means_range(r), false);
    read_prior(&k, r);
    for (int i = 0; i < 4; i++) kernel_constant(&k, constants[i]);
    run_blocks(&k, r, rec);
}

/* ---- Vulkan: layer norm ---- */

enum { ROW_THREADS = 64, LEAST_LANES = 8, MOST_LANES = 64, CHUNKS = 3, GRAD_CHUNKS = 2 };

/* As many threads a row as leave each no more than CHUNKS steps of it, in workgroups of ROW_THREADS. */
static void run_rows(kernel_call *k, const record *r, gpu_recording *rec) {
    bool grad = r->op == &LAYER_NORM_GRAD;
    int64_t most = grad ? GRAD_CHUNKS : CHUNKS, step = kernel_step(r->i[I_CHANNELS]), steps = r->i[I_CHANNELS] / step, lanes = LEAST_LANES;
    while (lanes < MOST_LANES && steps > lanes * most) lanes *= 2;
    const int64_t constants[] = {ROW_THREADS, step, lanes, kernel_groups(steps, lanes), r->in[GRAD_PRIOR] != NULL};
    for (int i = 0; i < (grad ? 5 : 4); i++) kernel_constant(k, constants[i]);
    kernel_push(k, r->i[I_PIXELS]);
    kernel_push(k, steps);
    kernel_push_float(k, 1.0f / (float)r->i[I_CHANNELS]);
    kernel_push_float(k, r->f[0]);
    kernel_run_groups(k, rec, kernel_groups(r->i[I_PIXELS], ROW_THREADS / lanes));
}

static void layer_norm_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = forward_call("layer_norm", r, true);
    run_rows(&k, r, rec);
}

static void layer_norm_grad_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = grad_call("layer_norm_backward", r, true);
    read_prior(&k, r);
    run_rows(&k, r, rec);
}

static const op GROUP_NORM = {.name = "group_norm",
                              .backward = backward,
                              .scratch = group_scratch,
                              .narrow = narrow_result,
                              .run_cpu = group_norm_cpu,
                              .run_vulkan = group_norm_vulkan,
                              .in_place = -1,
                              .cheap = true};
static const op GROUP_NORM_GRAD = {.name = "group_norm_grad",
                                   .scratch = group_scratch,
                                   .narrow = grad_narrow,
                                   .run_cpu = group_norm_grad_cpu,
                                   .run_vulkan = group_norm_grad_vulkan,
                                   .in_place = 0};
static const op LAYER_NORM = {.name = "layer_norm",
                              .backward = backward,
                              .narrow = narrow_result,
                              .run_cpu = layer_norm_cpu,
                              .run_vulkan = layer_norm_vulkan,
                              .in_place = -1,
                              .cheap = true};
static const op LAYER_NORM_GRAD = {
    .name = "layer_norm_grad", .run_cpu = layer_norm_grad_cpu, .run_vulkan = layer_norm_grad_vulkan, .in_place = 0};
const op *const OP_GROUP_NORM = &GROUP_NORM, *const OP_GROUP_NORM_GRAD = &GROUP_NORM_GRAD;
const op *const OP_LAYER_NORM = &LAYER_NORM, *const OP_LAYER_NORM_GRAD = &LAYER_NORM_GRAD;
