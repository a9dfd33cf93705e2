/* What happens to adapter parameters after the backward pass: the norm of all gradients, and AdamW. All fp32. */
#include "base/memory.h"
#include "ops/kernel.h"
#include "ops/op.h"

#include <math.h>
#include <stdlib.h>

enum { I_COUNT, I_FIRST, I_PARTS, I_GATE, I_INNER, I_RANKS /* 0: without a gate */ };
enum { LEARNING_RATE, BETA1, BETA2, EPS, WEIGHT_DECAY, CORRECTION1, CORRECTION2, INVERSE_SCALE };
enum { GAP = 64 /* floats: less are between parameters of a pool, and those are zero */ };

/* Of one gate: ranks BEGIN .. END - 1 are open, and have been trained so often. */
enum { BEGIN, END, GATE_CORRECTION1, GATE_CORRECTION2, GATE_SIZE };

static const op SQUARE_SUM, GRAD_NORM, ADAMW, GATE_GRADIENT;
static int64_t parts_of(const device *d, int64_t count);

/* The number of floats from the beginning of `first`, which `count` belong to so far, to the end of `next`; 0 where it does not follow on
   them in the same buffer. Never on the CPU. */
static int64_t joined(const tensor *first, int64_t count, const tensor *next) {
    if (!first->gpu.buffer || first->gpu.buffer != next->gpu.buffer || next->gpu.offset <= first->gpu.offset) return 0;
    int64_t at = (int64_t)((next->gpu.offset - first->gpu.offset) / sizeof(float));
    return at >= count && at < count + GAP ? at + tensor_count(next) : 0;
}

/* Neighbouring gradients are summed together, each such run into parts of its own. On the CPU a part is the sum so far. */
tensor *op_grad_norm(tape *t, tensor *const *grads, int count, tensor *control) {
    if (!count) return tape_fail(t, "gradient norm: there is nothing to train");
    record **sums = memory_new((size_t)count, sizeof *sums);
    int64_t parts = 0;
    for (int i = 0, n = 0; i < count; n++) {
        record *r = sums[n] = tape_append(t, &SQUARE_SUM, &grads[i], 1, NULL, 0);
        r->i[I_COUNT] = tensor_count(grads[i]), r->i[I_FIRST] = parts;
        for (int64_t more = 0; ++i < count && (more = joined(r->in[0], r->i[I_COUNT], grads[i]));) r->i[I_COUNT] = more;
        parts += r->i[I_PARTS] = parts_of(tape_device(t), r->i[I_COUNT]);
    }
    tensor *sum = tape_temporary(t, DTYPE_F32, 1, &parts), *norm = tape_temporary(t, DTYPE_F32, 1, (int64_t[]){1});
    for (int i = 0; i < count && sums[i]; i++) sums[i]->out[0] = sum;
    free(sums);
    tape_append(t, &GRAD_NORM, (tensor *[]){sum, control}, 2, &norm, 1)->i[I_PARTS] = parts;
    tape_keep(norm);
    return norm;
}

tensor *op_square_sum(tape *t, tensor *x) {
    if (!x) return NULL;
    int64_t parts = parts_of(tape_device(t), tensor_count(x));
    tensor *sums = tape_temporary(t, DTYPE_F32, 1, &parts);
    record *r = tape_append(t, &SQUARE_SUM, &x, 1, &sums, 1);
    r->i[I_COUNT] = tensor_count(x), r->i[I_FIRST] = 0, r->i[I_PARTS] = parts;
    return op_total(t, sums);
}

/* Whether a record can take these tensors in too: they follow on its own, all four at the same distance. */
static bool extend(record *r, tensor *const next[4], const tensor *control, const tensor *norm, float max_norm) {
    if (r->op != &ADAMW || r->i[I_RANKS] || r->in[0] != control || r->in[1] != norm || r->f[0] < max_norm || r->f[0] > max_norm)
        return false;
    const tensor *const own[] = {r->out[0], r->in[2], r->out[1], r->out[2]};
    int64_t count = joined(own[0], r->i[I_COUNT], next[0]);
    for (int i = 1; i < 4; i++)
        if (joined(own[i], r->i[I_COUNT], next[i]) != count) return false;
    if (count) r->i[I_COUNT] = count;
    return count > 0;
}

static void set_gate(record *r, const update_gate *g) { r->i[I_GATE] = g->index, r->i[I_INNER] = g->inner, r->i[I_RANKS] = g->ranks; }

void op_gate_gradient(tape *t, tensor *grad, const update_gate *gate) {
    if (!grad || !gate->gates) return;
    record *r = tape_append(t, &GATE_GRADIENT, &gate->gates, 1, &grad, 1);
    r->i[I_COUNT] = tensor_count(grad);
    set_gate(r, gate);
}

void op_adamw(tape *t, tensor *param, tensor *grad, tensor *m, tensor *v, tensor *control, tensor *norm, float max_norm,
              const update_gate *gate) {
    if (!param || !grad || !m || !v || !control || !norm) return;
    int length = tape_length(t);
    if (!gate && length && extend(tape_record(t, length - 1), (tensor *[]){param, grad, m, v}, control, norm, max_norm)) return;
    record *r = tape_append(t, &ADAMW, (tensor *[]){control, norm}, 2, (tensor *[]){param, m, v}, 3);
    /* The gradient is read and set to zero. */
    r->in[2] = grad;
    r->i[I_COUNT] = tensor_count(param);
    r->f[0] = max_norm;
    if (!gate) return;
    r->in[3] = gate->gates;
    set_gate(r, gate);
}

/* ---- CPU ---- */

static void square_sum_cpu(const record *r, const device *d) {
    (void)d;
    const float *g = r->in[0]->cpu;
    float *parts = r->out[0]->cpu;
    int64_t part = r->i[I_FIRST];
    double sum = part ? (double)parts[part - 1] : 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) sum += (double)g[i] * (double)g[i];
    parts[part] = (float)sum;
}

static void grad_norm_cpu(const record *r, const device *d) {
    (void)d;
    const float *control = r->in[1]->cpu, *parts = r->in[0]->cpu;
    *(float *)r->out[0]->cpu = sqrtf(parts[r->i[I_PARTS] - 1]) * control[INVERSE_SCALE];
}

/* corrections: 1 - beta1^t, 1 - beta2^t. */
OP_HOT static void adamw_update(float *p, float *g, float *m, float *v, int64_t n, const float *control, const float *corrections,
                                float scale) {
    float rate = control[LEARNING_RATE], beta1 = control[BETA1], beta2 = control[BETA2];
    float step = rate / corrections[0], root = 1.0f / sqrtf(corrections[1]), decay = 1.0f - rate * control[WEIGHT_DECAY];
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * scale;
        m[i] = beta1 * m[i] + (1.0f - beta1) * grad;
        v[i] = beta2 * v[i] + (1.0f - beta2) * grad * grad;
        p[i] = p[i] * decay - step * m[i] / (sqrtf(v[i]) * root + control[EPS]);
    }
}

/* An element's rank is (index / inner) % ranks: the open ones are runs of `length` elements, one in every period of inner * ranks. */
typedef struct open_runs {
    int64_t first, length, period;
    const float *gate;
} open_runs;

static open_runs open_of(const record *r, const tensor *gates) {
    const float *gate = (const float *)gates->cpu + r->i[I_GATE] * GATE_SIZE;
    int64_t inner = r->i[I_INNER], begin = (int64_t)gate[BEGIN], end = (int64_t)gate[END];
    return (open_runs){begin * inner, (end - begin) * inner, inner * r->i[I_RANKS], gate};
}

static void gate_gradient_cpu(const record *r, const device *d) {
    (void)d;
    open_runs open = open_of(r, r->in[0]);
    float *g = r->out[0]->cpu;
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) {
        int64_t at = i % open.period;
        if (at < open.first || at >= open.first + open.length) g[i] = 0;
    }
}

static void adamw_gated_cpu(const record *r, const float *control, float scale) {
    open_runs open = open_of(r, r->in[3]);
    float *p = r->out[0]->cpu, *g = r->in[2]->cpu, *m = r->out[1]->cpu, *v = r->out[2]->cpu;
    for (int64_t i = open.first; i < r->i[I_COUNT] && open.length > 0; i += open.period)
        adamw_update(p + i, g + i, m + i, v + i, open.length, control, open.gate + GATE_CORRECTION1, scale);
}

static void adamw_cpu(const record *r, const device *d) {
    (void)d;
    const float *control = r->in[0]->cpu;
    float norm = *(const float *)r->in[1]->cpu, scale = control[INVERSE_SCALE], *g = r->in[2]->cpu;
    if (r->f[0] > 0 && norm > r->f[0]) scale *= r->f[0] / (norm + 1e-6f);
    if (isfinite(norm) && r->i[I_RANKS])
        adamw_gated_cpu(r, control, scale);
    else if (isfinite(norm))
        adamw_update(r->out[0]->cpu, g, r->out[1]->cpu, r->out[2]->cpu, r->i[I_COUNT], control, control + CORRECTION1, scale);
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) g[i] = 0;
}

/* ---- Vulkan ---- */

enum { THREADS = 256, PART = 64 * THREADS /* floats of a workgroup */, MOST_PARTS = 256 };

/* As many workgroups as begin on a multiple of GAP parts: ranges that are bound must be aligned. */
static int64_t parts_of(const device *d, int64_t count) {
    if (!d->gpu) return 1;
    int64_t parts = kernel_groups(kernel_groups(count, PART), GAP) * GAP;
    return parts > MOST_PARTS ? MOST_PARTS : parts;
}

static gpu_range range_of(const tensor *first, int64_t at, int64_t count) {
    return (gpu_range){first->gpu.buffer, first->gpu.offset + (size_t)at * sizeof(float), (size_t)count * sizeof(float)};
}

static void square_sum_vulkan(const record *r, gpu_recording *rec) {
    int64_t count = r->i[I_COUNT], step = kernel_step(count);
    kernel_call k = kernel_named("square_sum");
    kernel_bind(&k, range_of(r->in[0], 0, count), false);
    kernel_bind(&k, range_of(r->out[0], r->i[I_FIRST], r->i[I_PARTS]), true);
    kernel_constant(&k, THREADS);
    kernel_constant(&k, step);
    kernel_push(&k, count / step);
    kernel_run(&k, rec, r->i[I_PARTS], 1, 1, 0);
}

static void grad_norm_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("grad_norm");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    kernel_write(&k, r->out[0]);
    kernel_constant(&k, THREADS);
    kernel_push(&k, r->i[I_PARTS]);
    kernel_run(&k, rec, 1, 1, 1, 0);
}

static void adamw_vulkan(const record *r, gpu_recording *rec) {
    const tensor *const all[] = {r->out[0], r->in[2], r->out[1], r->out[2]};
    int64_t fours = kernel_groups(r->i[I_COUNT], 4);
    kernel_call k = kernel_named("adamw");
    for (int i = 0; i < 4; i++) kernel_bind(&k, range_of(all[i], 0, 4 * fours), true);
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    bool gated = r->i[I_RANKS] > 0;
    kernel_read(&k, gated ? r->in[3] : r->in[0]);
    kernel_constant(&k, gated);
    kernel_push(&k, fours);
    kernel_push_float(&k, r->f[0]);
    for (int i = I_GATE; i <= I_RANKS; i++) kernel_push(&k, r->i[i]);
    kernel_run_over(&k, rec, fours);
}

static void gate_gradient_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("gate_gradient");
    kernel_write(&k, r->out[0]);
    kernel_read(&k, r->in[0]);
    kernel_push(&k, r->i[I_COUNT]);
    for (int i = I_GATE; i <= I_RANKS; i++) kernel_push(&k, r->i[i]);
    kernel_run_over(&k, rec, r->i[I_COUNT]);
}

static const op SQUARE_SUM = {.name = "square_sum", .run_cpu = square_sum_cpu, .run_vulkan = square_sum_vulkan, .in_place = -1};
static const op GRAD_NORM = {.name = "grad_norm", .run_cpu = grad_norm_cpu, .run_vulkan = grad_norm_vulkan, .in_place = -1};
static const op ADAMW = {.name = "adamw", .run_cpu = adamw_cpu, .run_vulkan = adamw_vulkan, .in_place = -1};
static const op GATE_GRADIENT = {.name = "gate_gradient", .run_cpu = gate_gradient_cpu, .run_vulkan = gate_gradient_vulkan, .in_place = -1};
const op *const OP_SQUARE_SUM = &SQUARE_SUM, *const OP_GRAD_NORM = &GRAD_NORM, *const OP_ADAMW = &ADAMW,
                *const OP_GATE_GRADIENT = &GATE_GRADIENT;
