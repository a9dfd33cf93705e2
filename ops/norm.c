/* Group normalization over channels-last images (with optional SiLU behind it), layer normalization over rows, and their gradients with
   respect to the input.

   forward   y = act(xh * gamma + beta), xh = (x - mean) * rstd
   backward  dx = rstd * (g - mean(g) - xh * mean(g * xh)), g = gamma * dy * act'(xh * gamma + beta), means over the normalized set */
#include "base/memory.h"
#include "ops/kernel.h"
#include "ops/op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { IN_X, IN_GAMMA, IN_BETA, INPUTS };
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
    if (!x->needs_grad) return;
    tensor *dx = tape_temporary(t, DTYPE_COUNT, x->rank, x->dim);
    const op *rule = r->op == &GROUP_NORM ? &GROUP_NORM_GRAD : &LAYER_NORM_GRAD;
    record *d =
        tape_append(t, rule, (tensor *[]){tape_get_grad(r->out[0]), x, r->in[IN_GAMMA], r->in[IN_BETA], r->out[1]}, 5, (tensor *[]){dx}, 1);
    memcpy(d->i, r->i, sizeof r->i);
    d->f[0] = r->f[0];
    grad_add(t, x, dx);
}

/* ---- CPU ---- */

static float silu_slope(float z) {
    float s = scalar_sigmoid(z);
    return s * (1.0f + z * (1.0f - s));
}

OP_HOT static void sum_rows(const float *x, const float *centre, int64_t rows, int64_t c, float *sums) {
    for (int64_t i = 0; i < rows; i++, x += c)
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

static size_t vulkan_scratch(const record *r);

static size_t group_scratch(const record *r, const device *d) {
    return d->gpu ? vulkan_scratch(r) : (size_t)r->i[I_CHANNELS] * (PARTS * 2 * sizeof(float) + 6 * sizeof(double));
}

OP_HOT static void normalize_rows(const float *x, float *y, int64_t rows, int64_t c, const float *a, const float *b, bool silu) {
    for (int64_t i = 0; i < rows; i++, x += c, y += c) {
        for (int64_t j = 0; j < c; j++) y[j] = x[j] * a[j] + b[j];
        if (silu)
            for (int64_t j = 0; j < c; j++) y[j] *= scalar_sigmoid(y[j]);
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
        float *y = (float *)r->out[0]->cpu + n * pixels * c;
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
            int64_t first = pixels * part / PARTS, end = pixels * (part + 1) / PARTS;
            normalize_rows(x + first * c, y + first * c, end - first, c, a, b, r->i[I_SILU] != 0);
        }
    }
}

/* g = gamma dy act'(z) for a row; per channel sums of g and g xh. */
OP_HOT static void grad_row_sums(const float *x, const float *dy, int64_t c, const float *mean, const float *rstd, const float *gamma,
                                 const float *beta, bool silu, float *g_sum, float *gx_sum) {
    for (int64_t j = 0; j < c; j++) {
        float xh = (x[j] - mean[j]) * rstd[j], g = gamma[j] * dy[j];
        if (silu) g *= silu_slope(xh * gamma[j] + beta[j]);
        g_sum[j] += g;
        gx_sum[j] += g * xh;
    }
}

OP_HOT static void grad_row(const float *x, const float *dy, float *dx, int64_t c, const float *mean, const float *rstd, const float *gamma,
                            const float *beta, bool silu, const float *g_mean, const float *gx_mean) {
    for (int64_t j = 0; j < c; j++) {
        float xh = (x[j] - mean[j]) * rstd[j], g = gamma[j] * dy[j];
        if (silu) g *= silu_slope(xh * gamma[j] + beta[j]);
        dx[j] = rstd[j] * (g - g_mean[j] - xh * gx_mean[j]);
    }
}

static void group_norm_grad_cpu(const record *r, const device *d) {
    (void)d;
    int64_t pixels = r->i[I_PIXELS], c = r->i[I_CHANNELS], groups = r->i[I_GROUPS], width = c / groups;
    bool silu = r->i[I_SILU] != 0;
    const float *gamma = r->in[2]->cpu, *beta = r->in[3]->cpu, *stats = r->in[4]->cpu;
    float *partial = r->scratch->cpu, *mean = partial + 2 * PARTS * c, *rstd = mean + c, *g_mean = rstd + c, *gx_mean = g_mean + c;
    for (int64_t n = 0; n < r->i[I_IMAGES]; n++, stats += 2 * groups) {
        const float *dy = (const float *)r->in[0]->cpu + n * pixels * c, *x = (const float *)r->in[1]->cpu + n * pixels * c;
        float *dx = (float *)r->out[0]->cpu + n * pixels * c;
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
        for (int64_t i = 0; i < pixels; i++) grad_row(x + i * c, dy + i * c, dx + i * c, c, mean, rstd, gamma, beta, silu, g_mean, gx_mean);
    }
}

OP_HOT static void layer_norm_row(const float *x, float *y, int64_t c, const float *gamma, const float *beta, float eps, float *stats) {
    double sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < c; j++) sum += (double)x[j];
    float mean = (float)(sum / (double)c);
#pragma omp simd reduction(+ : square)
    for (int64_t j = 0; j < c; j++) square += (double)((x[j] - mean) * (x[j] - mean));
    float rstd = (float)(1.0 / sqrt(square / (double)c + (double)eps));
    for (int64_t j = 0; j < c; j++) y[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
    stats[0] = mean, stats[1] = rstd;
}

static void layer_norm_cpu(const record *r, const device *d) {
    (void)d;
    int64_t c = r->i[I_CHANNELS];
    const float *x = r->in[IN_X]->cpu;
    float *y = r->out[0]->cpu, *stats = r->out[1]->cpu;
#pragma omp parallel for schedule(static) if (r->i[I_PIXELS] * c > OP_SMALL)
    for (int64_t i = 0; i < r->i[I_PIXELS]; i++)
        layer_norm_row(x + i * c, y + i * c, c, r->in[IN_GAMMA]->cpu, r->in[IN_BETA]->cpu, r->f[0], stats + 2 * i);
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
    for (int64_t j = 0; j < c; j++) dx[j] = rstd * (gamma[j] * dy[j] - g_mean - (x[j] - mean) * rstd * gx_mean);
}

static void layer_norm_grad_cpu(const record *r, const device *d) {
    (void)d;
    int64_t c = r->i[I_CHANNELS];
    const float *dy = r->in[0]->cpu, *x = r->in[1]->cpu, *stats = r->in[4]->cpu;
    float *dx = r->out[0]->cpu;
#pragma omp parallel for schedule(static) if (r->i[I_PIXELS] * c > OP_SMALL)
    for (int64_t i = 0; i < r->i[I_PIXELS]; i++) layer_norm_grad_row(x + i * c, dy + i * c, dx + i * c, c, r->in[2]->cpu, stats + 2 * i);
}

/* ---- Vulkan ---- */

enum { CHUNK = 4096 /* elements of a group that one workgroup sums */, MOST_CHUNKS = 64, THREADS = 64 };

static int64_t chunks_of(const record *r) {
    int64_t chunks = kernel_groups(r->i[I_PIXELS] * r->i[I_CHANNELS] / r->i[I_GROUPS], CHUNK);
    return chunks > MOST_CHUNKS ? MOST_CHUNKS : chunks;
}

/* Partial sums, then the means of the gradient: pairs of floats. */
static int64_t part_pairs(const record *r) { return r->i[I_IMAGES] * r->i[I_GROUPS] * chunks_of(r); }

static gpu_range part_range(const record *r) {
    gpu_range range = r->scratch->gpu;
    range.size = (size_t)part_pairs(r) * 2 * sizeof(float);
    return range;
}

static gpu_range means_range(const record *r) {
    gpu_range range = r->scratch->gpu;
    size_t begin = ((size_t)part_pairs(r) * 2 * sizeof(float) + 255) / 256 * 256; /* any device's offset alignment */
    range.offset += begin;
    range.size = (size_t)(r->i[I_IMAGES] * r->i[I_GROUPS]) * 2 * sizeof(float);
    return range;
}

static size_t vulkan_scratch(const record *r) {
    return ((size_t)part_pairs(r) * 2 * sizeof(float) + 255) / 256 * 256 + (size_t)(r->i[I_IMAGES] * r->i[I_GROUPS]) * 2 * sizeof(float);
}

static void push_sizes(kernel_call *k, const record *r, bool images) {
    if (images) kernel_push(k, r->i[I_IMAGES]);
    kernel_push(k, r->i[I_PIXELS]);
    kernel_push(k, r->i[I_GROUPS]);
    kernel_push(k, r->i[I_CHANNELS] / r->i[I_GROUPS]);
    if (!images) kernel_push(k, chunks_of(r));
}

static void finish(const record *r, gpu_recording *rec, gpu_range stats, bool grad) {
    kernel_call k = kernel_named("group_norm_finish");
    kernel_constant(&k, grad);
    kernel_bind(&k, part_range(r), false);
    kernel_bind(&k, stats, true);
    kernel_push(&k, r->i[I_IMAGES] * r->i[I_GROUPS]);
    kernel_push(&k, r->i[I_PIXELS]);
    kernel_push(&k, r->i[I_CHANNELS] / r->i[I_GROUPS]);
    kernel_push(&k, chunks_of(r));
    kernel_push_float(&k, r->f[0]);
    kernel_run_over(&k, rec, r->i[I_IMAGES] * r->i[I_GROUPS]);
}

static void group_norm_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("group_norm_stats");
    kernel_read_typed(&k, r->in[IN_X]);
    kernel_bind(&k, part_range(r), true);
    kernel_constant(&k, THREADS);
    push_sizes(&k, r, false);
    kernel_run(&k, rec, chunks_of(r), r->i[I_GROUPS], r->i[I_IMAGES], 0);

    finish(r, rec, r->out[1]->gpu, false);

    int64_t four = kernel_fours(r->i[I_CHANNELS] / r->i[I_GROUPS]), count = r->i[I_IMAGES] * r->i[I_PIXELS] * r->i[I_CHANNELS];
    k = kernel_named("group_norm_apply");
    kernel_read_typed(&k, r->in[IN_X]);
    kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[IN_GAMMA]);
    kernel_read(&k, r->in[IN_BETA]);
    kernel_read(&k, r->out[1]);
    kernel_constant(&k, r->i[I_SILU]);
    kernel_constant(&k, four);
    push_sizes(&k, r, true);
    kernel_run_over(&k, rec, four ? count / 4 : count);
}

static void group_norm_grad_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("group_norm_backward_stats");
    kernel_read_typed(&k, r->in[1]);
    kernel_read_typed(&k, r->in[0]);
    for (int i = 2; i < 5; i++) kernel_read(&k, r->in[i]);
    kernel_bind(&k, part_range(r), true);
    kernel_constant(&k, THREADS);
    kernel_constant(&k, r->i[I_SILU]);
    push_sizes(&k, r, false);
    kernel_run(&k, rec, chunks_of(r), r->i[I_GROUPS], r->i[I_IMAGES], 0);

    finish(r, rec, means_range(r), true);

    k = kernel_named("group_norm_backward_apply");
    kernel_read_typed(&k, r->in[1]);
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    for (int i = 2; i < 5; i++) kernel_read(&k, r->in[i]);
    kernel_bind(&k, means_range(r), false);
    kernel_constant(&k, r->i[I_SILU]);
    push_sizes(&k, r, true);
    kernel_run_over(&k, rec, r->i[I_IMAGES] * r->i[I_PIXELS] * r->i[I_CHANNELS]);
}

static void layer_norm_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("layer_norm");
    kernel_read_typed(&k, r->in[IN_X]);
    kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[IN_GAMMA]);
    kernel_read(&k, r->in[IN_BETA]);
    kernel_write(&k, r->out[1]);
    kernel_constant(&k, THREADS);
    kernel_push(&k, r->i[I_PIXELS]);
    kernel_push(&k, r->i[I_CHANNELS]);
    kernel_push_float(&k, r->f[0]);
    kernel_run_groups(&k, rec, r->i[I_PIXELS]);
}

static void layer_norm_grad_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("layer_norm_backward");
    kernel_read_typed(&k, r->in[1]);
    kernel_read_typed(&k, r->in[0]);
    kernel_write_typed(&k, r->out[0]);
    kernel_read(&k, r->in[2]);
    kernel_read(&k, r->in[4]);
    kernel_constant(&k, THREADS);
    kernel_push(&k, r->i[I_PIXELS]);
    kernel_push(&k, r->i[I_CHANNELS]);
    kernel_run_groups(&k, rec, r->i[I_PIXELS]);
}

static const op GROUP_NORM = {.name = "group_norm",
                              .backward = backward,
                              .scratch = group_scratch,
                              .run_cpu = group_norm_cpu,
                              .run_vulkan = group_norm_vulkan,
                              .in_place = -1};
static const op GROUP_NORM_GRAD = {.name = "group_norm_grad",
                                   .scratch = group_scratch,
                                   .run_cpu = group_norm_grad_cpu,
                                   .run_vulkan = group_norm_grad_vulkan,
                                   .in_place = 0};
static const op LAYER_NORM = {
    .name = "layer_norm", .backward = backward, .run_cpu = layer_norm_cpu, .run_vulkan = layer_norm_vulkan, .in_place = -1};
static const op LAYER_NORM_GRAD = {
    .name = "layer_norm_grad", .run_cpu = layer_norm_grad_cpu, .run_vulkan = layer_norm_grad_vulkan, .in_place = 0};
const op *const OP_GROUP_NORM = &GROUP_NORM, *const OP_GROUP_NORM_GRAD = &GROUP_NORM_GRAD;
const op *const OP_LAYER_NORM = &LAYER_NORM, *const OP_LAYER_NORM_GRAD = &LAYER_NORM_GRAD;
