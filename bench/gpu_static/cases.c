/* The operations of SD1.5 at 512x512, with the shapes that matter, recorded as the engine would on the device at hand. */
#include "bench/gpu_static/gpu_static.h"

#include "base/memory.h"
#include "graph/tape.h"
#include "ops/ops.h"
#include "vulkan/recording.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Which part of an operation a target belongs to. */
typedef enum pass { PASS_FORWARD, PASS_BACKWARD } pass;

/* At least so many FLOP per clock and CU. */
typedef struct target {
    const char *name;
    struct {
        const char *family;
        double rate[2]; /* by pass; 0: none set */
    } of[3];
} target;

/* ggml's best kernel of that kind on the card (Mesa 25.0.7) is below all of these. */
static const target targets[] = {
    {"linear", {{"polaris10", {112, 108}}, {"navi21", {120, 120}}, {"navi31", {460, 410}}}},
    {"trained linear", {{"polaris10", {112, 108}}, {"navi21", {120, 117}}, {"navi31", {460, 390}}}},
    {"trained conv", {{"polaris10", {110, 105}}, {"navi21", {120, 115}}, {"navi31", {440, 340}}}},
    {"adapter", {{"polaris10", {95, 95}}, {"navi21", {100, 100}}, {"navi31", {130, 130}}}},
    {"conv 3x3", {{"polaris10", {110, 105}}, {"navi21", {120, 117}}, {"navi31", {440, 390}}}},
    {"attention 40", {{"polaris10", {75, 70}}, {"navi21", {110, 102}}, {"navi31", {235, 240}}}},
    {"attention 80", {{"polaris10", {75, 70}}, {"navi21", {113, 92}}, {"navi31", {280, 310}}}},
    {"attention 160", {{"polaris10", {78, 56}}, {"navi21", {100, 78}}, {"navi31", {270, 235}}}},
};

typedef struct shape {
    const char *label;
    const char *target; /* NULL: none is set */
    tensor *(*build)(tape *t, const int64_t *i);
    int64_t i[8];
} shape;

/* ---- making tensors that are only looked at ---- */

static tensor *activation_of(tape *t, int rank, const int64_t *dim) {
    tensor *x = tape_input(t, "x", DTYPE_COUNT, rank, dim);
    x->needs_grad = true;
    return x;
}
static tensor *rows_of(tape *t, int64_t rows, int64_t columns) { return activation_of(t, 3, (int64_t[]){1, rows, columns}); }
static tensor *frozen(tape *t, int rank, const int64_t *dim) { return tape_input(t, "w", DTYPE_COUNT, rank, dim); }
static tensor *vector(tape *t, int64_t n) { return tape_input(t, "v", DTYPE_F32, 1, &n); }
static tensor *trained(tape *t, int rank, const int64_t *dim) {
    tensor *w = tape_input(t, "adapter", DTYPE_F32, rank, dim);
    w->needs_grad = true;
    w->grad = tape_input(t, "gradient", DTYPE_F32, rank, dim);
    return w;
}

/* ---- operations ---- */

static tensor *linear(tape *t, const int64_t *i) { /* rows, in, out */
    return op_linear(t, rows_of(t, i[0], i[1]), frozen(t, 2, (int64_t[]){i[2], i[1]}), vector(t, i[2]), rows_of(t, i[0], i[2]), 1);
}
static tensor *adapter(tape *t, const int64_t *i) { /* rows, in, out */
    return op_linear(t, rows_of(t, i[0], i[1]), trained(t, 2, (int64_t[]){i[2], i[1]}), NULL, NULL, 1);
}
static tensor *adapter_up(tape *t, const int64_t *i) { /* added to what the base layer gave */
    return op_linear(t, rows_of(t, i[0], i[1]), trained(t, 2, (int64_t[]){i[2], i[1]}), NULL, rows_of(t, i[0], i[2]), 1);
}
/* A weight that is trained itself, or made anew in each step: half floats, but its gradient is not. */
static tensor *full(tape *t, const int64_t *i) {
    tensor *w = frozen(t, 2, (int64_t[]){i[2], i[1]});
    w->needs_grad = true;
    w->grad = tape_input(t, "gradient", DTYPE_F32, 2, w->dim);
    return op_linear(t, rows_of(t, i[0], i[1]), w, vector(t, i[2]), NULL, 1);
}
static tensor *conv_with(tape *t, const int64_t *i, tensor *w) { /* size, in, out, kernel, stride */
    tensor *x = activation_of(t, 4, (int64_t[]){1, i[0], i[0], i[1]});
    return op_conv2d(t, x, w, vector(t, i[2]), NULL, NULL, (conv_shape){(int)i[3], (int)i[4], (int)i[3] / 2, (int)i[3] / 2});
}
static tensor *conv(tape *t, const int64_t *i) { return conv_with(t, i, frozen(t, 3, (int64_t[]){i[3] * i[3], i[2], i[1]})); }
static tensor *adapter_conv(tape *t, const int64_t *i) { return conv_with(t, i, trained(t, 3, (int64_t[]){i[3] * i[3], i[2], i[1]})); }
static tensor *full_conv(tape *t, const int64_t *i) {
    tensor *w = frozen(t, 3, (int64_t[]){i[3] * i[3], i[2], i[1]});
    w->needs_grad = true;
    w->grad = tape_input(t, "gradient", DTYPE_F32, 3, w->dim);
    return conv_with(t, i, w);
}
static tensor *attention(tape *t, const int64_t *i) { /* queries, keys, width of all heads, heads */
    return op_attention(t, rows_of(t, i[0], i[2]), rows_of(t, i[1], i[2]), rows_of(t, i[1], i[2]), (int)i[3], false);
}
static tensor *group_norm(tape *t, const int64_t *i) { /* size, channels */
    return op_group_norm(t, activation_of(t, 4, (int64_t[]){1, i[0], i[0], i[1]}), vector(t, i[1]), vector(t, i[1]), 32, 1e-5f, true);
}
static tensor *layer_norm(tape *t, const int64_t *i) {
    return op_layer_norm(t, rows_of(t, i[0], i[1]), vector(t, i[1]), vector(t, i[1]), 1e-5f);
}
/* Norms whose gamma and beta an adapter trains. */
static tensor *trained_vector(tape *t, int64_t n) { return trained(t, 1, &n); }
static tensor *trained_group_norm(tape *t, const int64_t *i) {
    tensor *x = activation_of(t, 4, (int64_t[]){1, i[0], i[0], i[1]});
    return op_group_norm(t, x, trained_vector(t, i[1]), trained_vector(t, i[1]), 32, 1e-5f, true);
}
static tensor *trained_layer_norm(tape *t, const int64_t *i) {
    return op_layer_norm(t, rows_of(t, i[0], i[1]), trained_vector(t, i[1]), trained_vector(t, i[1]), 1e-5f);
}
/* DoRA around a LoRA; in, out, taps, rank, and whether rows have magnitudes. */
static tensor *dora(tape *t, const int64_t *i) {
    const int64_t in = i[0], out = i[1], taps = i[2], rank = i[3], weight[] = {taps, out, in}, right[] = {taps, rank, in},
                  left[] = {out, rank};
    int dims = taps > 1 ? 3 : 2;
    tensor *w = frozen(t, dims, weight + (taps == 1)), *down = trained(t, dims, right + (taps == 1));
    return op_dora_factored(t, w, trained(t, 2, left), down, 1, trained(t, 1, i[4] ? &i[1] : &i[0]), i[4] != 0);
}
static tensor *geglu(tape *t, const int64_t *i) { return op_geglu(t, rows_of(t, i[0], i[1])); }
static tensor *silu(tape *t, const int64_t *i) { return op_activation(t, rows_of(t, i[0], i[1]), ACTIVATION_SILU); }
static tensor *sum_of_two(tape *t, const int64_t *i) { return op_add(t, rows_of(t, i[0], i[1]), rows_of(t, i[0], i[1])); }
static tensor *mse(tape *t, const int64_t *i) {
    return op_mse(t, rows_of(t, i[0], i[1]), tape_input(t, "target", DTYPE_F32, 3, (int64_t[]){1, i[0], i[1]}));
}
static tensor *concat(tape *t, const int64_t *i) {
    return op_concat(t, activation_of(t, 4, (int64_t[]){1, i[0], i[0], i[1]}), activation_of(t, 4, (int64_t[]){1, i[0], i[0], i[1]}));
}
static tensor *sum_pixels(tape *t, const int64_t *i) {
    return op_sum_pixels(t, tape_input(t, "x", DTYPE_COUNT, 4, (int64_t[]){1, i[0], i[0], i[1]}));
}
static tensor *update(tape *t, const int64_t *i) {
    tensor *grad = vector(t, i[0]), *control = vector(t, 8), *norm = op_grad_norm(t, &grad, 1, control);
    op_adamw(t, vector(t, i[0]), grad, vector(t, i[0]), vector(t, i[0]), control, norm, 1, NULL);
    return norm;
}
static tensor *upsample(tape *t, const int64_t *i) {
    return op_upsample(t, activation_of(t, 4, (int64_t[]){1, i[0], i[0], i[1]}), 2 * i[0], 2 * i[0]);
}

static const shape shapes[] = {
    {"linear 4096x320x2560", "linear", linear, {4096, 320, 2560}},
    {"linear 1024x640x640", NULL, linear, {1024, 640, 640}},
    {"linear 64x1280x1280", NULL, linear, {64, 1280, 1280}},
    {"linear 77x768x640", NULL, linear, {77, 768, 640}},
    {"linear 1x320x1280", NULL, linear, {1, 320, 1280}},
    {"linear 64x5120x1280", NULL, linear, {64, 5120, 1280}},
    {"linear 256x1280x1280", NULL, linear, {256, 1280, 1280}},
    {"trained linear 4096x320x320", NULL, full, {4096, 320, 320}},
    {"trained linear 1024x640x5120", "trained linear", full, {1024, 640, 5120}},
    {"trained linear 256x1280x1280", NULL, full, {256, 1280, 1280}},
    {"trained linear 77x768x640", NULL, full, {77, 768, 640}},
    {"adapter down 4096x320x16", "adapter", adapter, {4096, 320, 16}},
    {"adapter up 4096x16x320", "adapter", adapter_up, {4096, 16, 320}},
    {"adapter down 4096x320x4", NULL, adapter, {4096, 320, 4}},
    {"adapter up 4096x4x320", NULL, adapter_up, {4096, 4, 320}},
    {"adapter down 4096x320x64", "adapter", adapter, {4096, 320, 64}},
    {"adapter up 4096x64x320", "adapter", adapter_up, {4096, 64, 320}},
    {"adapter down 1024x640x16", NULL, adapter, {1024, 640, 16}},
    {"adapter up 1024x16x640", NULL, adapter_up, {1024, 16, 640}},
    {"adapter down 256x1280x16", NULL, adapter, {256, 1280, 16}},
    {"adapter up 256x16x1280", NULL, adapter_up, {256, 16, 1280}},
    {"adapter conv 3x3 64x64 320>16", NULL, adapter_conv, {64, 320, 16, 3, 1}},
    {"conv 3x3 64x64 320>320", "conv 3x3", conv, {64, 320, 320, 3, 1}},
    {"conv 3x3 16x16 1280>1280", "conv 3x3", conv, {16, 1280, 1280, 3, 1}},
    {"conv 3x3 8x8 1280>1280", "conv 3x3", conv, {8, 1280, 1280, 3, 1}},
    {"conv 3x3 8x8 2560>1280", NULL, conv, {8, 2560, 1280, 3, 1}},
    {"conv 3x3 64x64 320>320 stride 2", "conv 3x3", conv, {64, 320, 320, 3, 2}},
    {"conv 3x3 16x16 1280>1280 stride 2", NULL, conv, {16, 1280, 1280, 3, 2}},
    {"trained conv 3x3 64x64 320>320", NULL, full_conv, {64, 320, 320, 3, 1}},
    {"trained conv 3x3 16x16 1280>1280", "trained conv", full_conv, {16, 1280, 1280, 3, 1}},
    {"conv 3x3 64x64 4>320", NULL, conv, {64, 4, 320, 3, 1}},
    {"conv 3x3 64x64 320>4", NULL, conv, {64, 320, 4, 3, 1}},
    {"conv 1x1 64x64 640>320", NULL, conv, {64, 640, 320, 1, 1}},
    {"attention 4096 head 40", "attention 40", attention, {4096, 4096, 320, 8}},
    {"attention 1024 head 80", "attention 80", attention, {1024, 1024, 640, 8}},
    {"attention 256 head 160", "attention 160", attention, {256, 256, 1280, 8}},
    {"attention 4096x77 head 40", NULL, attention, {4096, 77, 320, 8}},
    {"group norm 64x64x320", NULL, group_norm, {64, 320}},
    {"group norm 32x32x960", NULL, group_norm, {32, 960}},
    {"group norm 16x16x1280", NULL, group_norm, {16, 1280}},
    {"group norm 8x8x2560", NULL, group_norm, {8, 2560}},
    {"layer norm 4096x320", NULL, layer_norm, {4096, 320}},
    {"layer norm 1024x640", NULL, layer_norm, {1024, 640}},
    {"layer norm 256x1280", NULL, layer_norm, {256, 1280}},
    {"trained group norm 64x64x320", NULL, trained_group_norm, {64, 320}},
    {"trained group norm 16x16x1280", NULL, trained_group_norm, {16, 1280}},
    {"trained layer norm 4096x320", NULL, trained_layer_norm, {4096, 320}},
    {"trained layer norm 256x1280", NULL, trained_layer_norm, {256, 1280}},
    {"dora 1280x1280 columns", NULL, dora, {1280, 1280, 1, 16, 0}},
    {"dora 1280x1280 rows", NULL, dora, {1280, 1280, 1, 16, 1}},
    {"dora 3x3 640x640 columns", NULL, dora, {640, 640, 9, 16, 0}},
    {"geglu 4096x2560", NULL, geglu, {4096, 2560}},
    {"silu 1x1280", NULL, silu, {1, 1280}},
    {"add 4096x320", NULL, sum_of_two, {4096, 320}},
    {"mse 4096x4", NULL, mse, {4096, 4}},
    {"concat 64x64x320", NULL, concat, {64, 320}},
    {"upsample 32x32x640", NULL, upsample, {32, 640}},
    {"sum of pixels 64x64x320", NULL, sum_pixels, {64, 320}},
    {"update of 3 million", NULL, update, {3 << 20}},
};

static double target_rate(const char *name, const char *family, pass which) {
    for (size_t i = 0; name && i < sizeof targets / sizeof *targets; i++)
        for (int k = 0; k < 3 && strcmp(targets[i].name, name) == 0; k++)
            if (strcmp(targets[i].of[k].family, family) == 0) return targets[i].of[k].rate[which];
    return 0;
}

enum { MOST_SEEN = 512 };

typedef struct context {
    device *device;
    struct {
        const gpu_pipeline *pipeline;
        uint32_t groups[3];
    } seen[MOST_SEEN];
    int seen_count;
    size_t next;        /* where the last tensor was said to lie */
    gpu_buffer *memory; /* what every tensor is said to lie in */
    const char *family;
    case_visit visit;
    void *user;
} context;

static void place(context *c, tensor *x) {
    if (x && !x->gpu.size)
        x->gpu = (gpu_range){c->memory, c->next += 65536, x->bytes ? x->bytes : (size_t)tensor_count(x) * dtype_size(x->type)};
}

/* Kernels with loops inside the main one, whose lengths are constants: gemm.comp over a block of k; attention over places or tokens of a
   block, which 64 threads filled in fours, and over chunks of a head; attention's backward pass for half floats over chunks for the scores.
 */
static bool find_trips(const gpu_pipeline *p, inner_loops *out) {
    enum {
        GEMM_K = 3,
        GEMM_SLICES = 9,
        GEMM_UNROLL = 11,
        PLACES = 1,
        CHUNKS,
        ROWS,
        THREADS = 64,
        HALF_PLACES = 40,
        HALF_BACKWARD_CONSTANTS = 2
    };
    const uint32_t *c = p->constants;
    if (strncmp(p->shader, "gemm_", 5) == 0 && strlen(p->shader) == strlen("gemm_hhh")) {
        *out = (inner_loops){c[GEMM_K] / c[GEMM_SLICES] / c[GEMM_UNROLL], 1, 1};
        return true;
    }
    if (strncmp(p->shader, "attention_half_", 15) == 0 && p->constant_count == HALF_BACKWARD_CONSTANTS) {
        *out = (inner_loops){(double)c[0] / HALF_PLACES, 1, 1};
        return c[0] > HALF_PLACES;
    }
    if (strncmp(p->shader, "attention_backward", 18) != 0 && strncmp(p->shader, "attention_forward", 17) != 0) return false;
    *out = (inner_loops){c[ROWS], (double)(c[ROWS] * c[PLACES] / 4) / THREADS, c[CHUNKS]};
    return true;
}

/* Share of the products that is not padding: attention_matrix*.comp pad heads to whole fragments. */
static double useful(const gpu_pipeline *p) {
    if (strncmp(p->shader, "attention_matrix", 16) != 0) return 1;
    uint32_t places = p->constants[1], fragment = p->constants[4];
    return (double)places / ((places + fragment - 1) / fragment * fragment);
}

/* How often matrix products pass their main loop, and gemm and gemm_matrix the loop that stores results. */
static void find_steps(case_kernel *k, const launch *l) {
    enum { THREADS, BM, BN, BK, TM, WN = 7, FRAGMENT, WAVE };
    enum { SIZE_K = 2, TAPS, SPLITS = 16 }; /* push constants, gemm_shape.glsl */
    const uint32_t *c = l->pipeline->constants, *p = l->push;
    if (strncmp(k->pipeline->shader, "gemm_", 5) != 0 || strncmp(k->pipeline->shader, "gemm_finish", 11) == 0) return;
    k->steps = ceil(ceil((double)p[SIZE_K] / c[BK]) * p[TAPS] / p[SPLITS]);
    k->after = 1;
    if (strncmp(k->pipeline->shader, "gemm_matrix", 11) == 0)
        k->after = ceil((double)c[FRAGMENT] * c[WN] / 4 / c[WAVE]);
    else if (strncmp(k->pipeline->shader, "gemm_half", 9) != 0)
        k->after = ceil((double)c[BM] / c[TM] * c[BN] / c[THREADS]);
}

/* What the launch's operands take together. Those that are the same tensor count once. */
static double bytes_of(const launch *l) {
    double bytes = 0;
    for (int i = 0; i < l->range_count; i++) {
        bool again = false;
        for (int k = 0; k < i; k++) again = again || l->ranges[k].offset == l->ranges[i].offset;
        if (!again) bytes += (double)l->ranges[i].size;
    }
    return bytes;
}

static bool launch_is_new(context *c, const launch *l) {
    for (int i = 0; i < c->seen_count; i++)
        if (c->seen[i].pipeline == l->pipeline && memcmp(c->seen[i].groups, l->groups, sizeof l->groups) == 0) return false;
    if (c->seen_count == MOST_SEEN) return true;
    c->seen[c->seen_count].pipeline = l->pipeline;
    memcpy(c->seen[c->seen_count++].groups, l->groups, sizeof l->groups);
    return true;
}

/* Targets are those of a record's products: its first launch, and attention's, but for the one that prepares its backward pass. */
static bool is_judged(const launch *l, int index) {
    const char *shader = l->pipeline->shader;
    return strncmp(shader, "attention_", 10) == 0 ? strncmp(shader, "attention_delta", 15) != 0 : index == 0;
}

/* Every launch of the record that is not like one before. */
static bool visit_record(context *c, const record *r, const char *label, double rate, error *err) {
    tensor scratch = {.type = DTYPE_F32};
    record own = *r;
    scratch.bytes = r->op->scratch ? r->op->scratch(r, c->device) : 0;
    if (scratch.bytes) own.scratch = &scratch;
    for (int i = 0; i < RECORD_INPUTS; i++) place(c, own.in[i]);
    for (int i = 0; i < RECORD_OUTPUTS; i++) place(c, own.out[i]);
    place(c, own.scratch);
    gpu_recording *rec = gpu_recording_begin(c->device->gpu);
    own.op->run_vulkan(&own, rec);
    int launches = rec->count;
    for (int i = 0; i < launches; i++) {
        const launch *l = &rec->launches[i];
        if (!launch_is_new(c, l)) continue;
        case_kernel k = {.label = label, .pipeline = l->pipeline, .useful = useful(l->pipeline), .target = is_judged(l, i) ? rate : 0};
        k.has_trips = find_trips(l->pipeline, &k.trips);
        k.groups = (double)l->groups[0] * l->groups[1] * l->groups[2];
        k.flops = i == 0 && r->op->flops ? r->op->flops(r) : 0;
        k.bytes = bytes_of(l);
        find_steps(&k, l);
        c->visit(c->user, &k);
    }
    gpu_recording_free(rec);
    return launches > 0 || error_set(err, "%s: %s launches nothing", label, r->op->name);
}

/* The gradient of y, whatever it may be, on its way back through the records before `end`. */
static void append_backward(tape *t, tensor *y, int end) {
    tape_set_grad(y, tape_temporary(t, y->type, y->rank, y->dim));
    for (int i = end - 1; i >= 0; i--) {
        const record *r = tape_record(t, i);
        if (r->op->backward && tape_get_grad(r->out[0])) r->op->backward(t, r);
    }
}

/* The records of the forward pass, then those of the backward pass. */
static bool visit_shape(context *c, const shape *s, error *err) {
    tape *t = tape_create(c->device);
    tensor *y = s->build(t, s->i);
    bool ok = y || error_set(err, "%s: %s", s->label, tape_error(t));
    int forward = tape_length(t);
    if (ok) append_backward(t, y, forward);
    for (int i = 0; i < tape_length(t) && ok; i++) {
        char label[96];
        snprintf(label, sizeof label, "%s%s", s->label, i < forward ? "" : ", back");
        ok = visit_record(c, tape_record(t, i), label, target_rate(s->target, c->family, i < forward ? PASS_FORWARD : PASS_BACKWARD), err);
    }
    tape_free(t);
    return ok;
}

bool cases_run(gpu *g, const char *family, case_visit visit, void *user, error *err) {
    gpu_buffer memory = {.gpu = g, .bytes = SIZE_MAX / 2};
    device d = {.gpu = g, .activation = DTYPE_F16, .threads = 1};
    context c = {.device = &d, .memory = &memory, .family = family, .visit = visit, .user = user};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!visit_shape(&c, &shapes[i], err)) return false;
    return true;
}
