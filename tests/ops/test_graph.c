/* The tape, its gradients and the memory plan, over random networks of real operations: every network is built again and again from its
   seed, with and without shared memory, checkpointing, and on Vulkan. */
#include "graph/plan.h"
#include "ops/ops.h"
#include "tests/support/validation.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "case_file.h"
#include "poison.h"

enum { MOST_TENSORS = 128, MOST_PARAMETERS = 128 };

typedef struct net {
    device *device;
    tape *tape;
    tensor_pool *pool;
    plan *plan;
    uint64_t seed, draws;
    tensor *made[MOST_TENSORS]; /* activations [n, h, w, c] to go on from; inputs first */
    int made_count;
    tensor *parameters[MOST_PARAMETERS];
    int parameter_count;
    float *constants[MOST_PARAMETERS];
    int constant_count;
    tensor *inputs[2], *target, *seed_input, *loss;
} net;

static uint64_t draw(net *n, uint64_t below) { return random_below(n->seed, 1, n->draws++, below); }

static float scale_for(int64_t fan_in) { return sqrtf(3.0f / (float)fan_in); }

/* A trained or a frozen weight: [out, in] or [9, out, in]. */
static tensor *weight(net *n, int rank, const int64_t *dim) {
    error err;
    bool trained = draw(n, 3) > 0;
    size_t count = (size_t)(dim[0] * dim[1] * (rank == 3 ? dim[2] : 1));
    float *values = case_values(n->seed * 1000 + n->draws, count, scale_for(rank == 3 ? 9 * dim[2] : dim[1]), 0);
    if (!trained) {
        n->constants[n->constant_count++] = values;
        return tensor_pool_constant(n->pool, "frozen", DTYPE_F32, rank, dim, values, &err);
    }
    tensor *w = tensor_pool_parameter(n->pool, "trained", rank, dim, &err);
    w->grad = tensor_pool_parameter(n->pool, "gradient", rank, dim, &err);
    w->needs_grad = true;
    assert_true(tensor_write(n->device, w, values, &err));
    free(values);
    return n->parameters[n->parameter_count++] = w;
}

static tensor *vector(net *n, int64_t count, float shift) {
    error err;
    float *values = n->constants[n->constant_count++] = case_values(n->seed * 1000 + n->draws, (size_t)count, 0.5f, shift);
    return tensor_pool_constant(n->pool, "vector", DTYPE_F32, 1, &count, values, &err);
}

static tensor *pick(net *n) {
    /* Mostly recent ones, so that networks get deep. */
    uint64_t back = draw(n, 3) ? draw(n, 4) : draw(n, (uint64_t)n->made_count);
    return n->made[back < (uint64_t)n->made_count ? n->made_count - 1 - (int)back : 0];
}

/* Another tensor whose first `dims` dimensions are those of x and, with `all`, the channels too; x itself when there is none. */
static tensor *pick_like(net *n, const tensor *x, bool all) {
    int from = (int)draw(n, (uint64_t)n->made_count);
    for (int i = 0; i < n->made_count; i++) {
        tensor *y = n->made[(from + i) % n->made_count];
        if (memcmp(x->dim, y->dim, (all ? 4 : 3) * sizeof *x->dim) == 0) return y;
    }
    return NULL;
}

static tensor *append_conv(net *n, tensor *x, int stride) {
    int64_t out = 4 + 4 * (int64_t)draw(n, 4);
    conv_shape shape = {.kernel = 3, .stride = stride, .pad_before = 1, .pad_after = 1};
    tensor *w = weight(n, 3, (int64_t[]){9, out, x->dim[3]}), *bias = vector(n, out, 0), *residual = NULL;
    if (stride == 1 && out == x->dim[3]) residual = pick_like(n, x, true);
    return op_conv2d(n->tape, x, w, bias, residual, NULL, shape);
}

static tensor *append_linear(net *n, tensor *x) {
    int64_t out = 4 + 4 * (int64_t)draw(n, 4);
    tensor *w = weight(n, 2, (int64_t[]){out, x->dim[3]});
    return op_linear(n->tape, x, w, vector(n, out, 0), out == x->dim[3] ? pick_like(n, x, true) : NULL, 0.75f);
}

static tensor *append_attention(net *n, tensor *x) {
    tensor *k = pick_like(n, x, true), *v = draw(n, 2) ? k : pick_like(n, x, true);
    return op_attention(n->tape, x, k, v, draw(n, 2) ? 2 : 1, draw(n, 3) == 0);
}

static tensor *append_any(net *n, tensor *x) {
    switch (draw(n, 11)) {
    case 0: return append_linear(n, x);
    case 1: return append_conv(n, x, 1);
    case 2: return append_conv(n, x, x->dim[1] > 2 ? 2 : 1);
    case 3: return op_group_norm(n->tape, x, vector(n, x->dim[3], 1), vector(n, x->dim[3], 0), 2, 1e-5f, draw(n, 2) != 0);
    case 4: return op_layer_norm(n->tape, x, vector(n, x->dim[3], 1), vector(n, x->dim[3], 0), 1e-5f);
    case 5: return op_activation(n->tape, x, (activation)draw(n, 3));
    case 6: return op_add(n->tape, x, pick_like(n, x, true));
    case 7: return x->dim[3] < 40 ? op_concat(n->tape, x, pick_like(n, x, false)) : x;
    case 8: return x->dim[1] < 7 ? op_upsample(n->tape, x, 2 * x->dim[1] - 1, 2 * x->dim[2]) : x;
    case 9: return x->dim[3] % 8 ? x : op_geglu(n->tape, x);
    default: return append_attention(n, x);
    }
}

/* The network without its plan. steps: operations in it. */
static void net_build(net *n, device *d, uint64_t seed, int steps, bool checkpointing) {
    *n = (net){.device = d, .tape = tape_create(d), .pool = tensor_pool_create(d), .seed = seed};
    const int64_t dim[4] = {1 + (int64_t)draw(n, 3), 3 + (int64_t)draw(n, 6), 3 + (int64_t)draw(n, 6), 8};
    for (int i = 0; i < 2; i++) n->made[n->made_count++] = n->inputs[i] = tape_input(n->tape, "input", DTYPE_COUNT, 4, dim);
    for (int i = 0; i < steps; i++) {
        if (i % 5 == 4) tape_segment(n->tape);
        tensor *y = append_any(n, pick(n));
        if (!y) fail_msg("%s", tape_error(n->tape));
        if (y != n->made[n->made_count - 1]) n->made[n->made_count++] = y;
    }
    tensor *last = append_conv(n, n->made[n->made_count - 1], 1);
    n->target = tape_input(n->tape, "target", DTYPE_F32, 4, last->dim);
    n->seed_input = tape_input(n->tape, "seed", DTYPE_F32, 1, (int64_t[]){1});
    n->loss = op_mse(n->tape, last, n->target);
    tape_backward(n->tape, n->loss, n->seed_input, checkpointing);
}

static void net_write(net *n) {
    error err;
    tensor *all[] = {n->inputs[0], n->inputs[1], n->target, n->seed_input};
    for (int i = 0; i < 4; i++) {
        float *values = case_values(7 + (uint64_t)i, (size_t)tensor_count(all[i]), i < 3, i < 3 ? 0 : 1);
        assert_true(tensor_write(n->device, all[i], values, &err));
        free(values);
    }
}

static void net_plan(net *n) {
    error err;
    plan_size measured;
    if (!plan_measure(n->tape, &measured, &err) || !(n->plan = plan_create(n->tape, &err))) fail_msg("%s", err.text);
    assert_int_equal(measured.arena, plan_arena_bytes(n->plan));
    assert_true(measured.live <= measured.arena && measured.live > measured.arena / 2);
    if (!poison_temporaries(n->device, n->tape, &err)) fail_msg("%s", err.text);
    net_write(n);
}

static float net_run(net *n) {
    error err;
    float loss;
    if (!plan_run(n->plan, &err) || !tensor_read(n->device, n->loss, &loss, &err)) fail_msg("%s", err.text);
    return loss;
}

static size_t net_parameters(const net *n) {
    size_t total = 0;
    for (int i = 0; i < n->parameter_count; i++) total += (size_t)tensor_count(n->parameters[i]);
    return total;
}

/* All gradients, one behind the other. */
static float *net_gradients(net *n) {
    error err;
    float *out = memory_new(net_parameters(n), sizeof *out), *at = out;
    for (int i = 0; i < n->parameter_count; i++) {
        assert_true(tensor_read(n->device, n->parameters[i]->grad, at, &err));
        at += tensor_count(n->parameters[i]);
    }
    return out;
}

static void net_free(net *n) {
    if (n->plan)
        plan_free(n->plan);
    else
        tape_free(n->tape);
    tensor_pool_free(n->pool);
    for (int i = 0; i < n->constant_count; i++) free(n->constants[i]);
}

static device *open_device(const char *spec) {
    error err;
    device *d = device_open(spec, "fp32", 2, &err);
    if (!d) {
        print_message("skipped: %s\n", err.text);
        skip();
    }
    return d;
}

/* ---- memory ---- */

static bool in_arena(const tensor *x) { return x && (x->home == TENSOR_TEMPORARY || x->home == TENSOR_INPUT); }

/* First and last record that touch x, counted here and not by the planner. */
typedef struct lifetime {
    const tensor *x;
    int first, last;
} lifetime;

static void touch(lifetime *list, int *count, const tensor *x, int record_index, int length) {
    if (!in_arena(x)) return;
    int i = 0;
    while (i < *count && list[i].x != x) i++;
    if (i == *count) list[(*count)++] = (lifetime){x, x->home == TENSOR_INPUT ? 0 : record_index, record_index};
    list[i].last = x->home == TENSOR_INPUT || x->keep ? length : record_index;
}

static lifetime *find_lifetimes(const tape *t, int *count) {
    int length = tape_length(t);
    lifetime *list = memory_new((size_t)(length + 4) * (RECORD_INPUTS + RECORD_OUTPUTS + 1), sizeof *list);
    *count = 0;
    for (int i = 0; i < length; i++) {
        const record *r = tape_record(t, i);
        for (int k = 0; k < RECORD_INPUTS; k++) touch(list, count, r->in[k], i, length);
        for (int k = 0; k < RECORD_OUTPUTS; k++) touch(list, count, r->out[k], i, length);
        touch(list, count, r->scratch, i, length);
    }
    return list;
}

/* b's first record may take over a's memory when that record is a's last. */
static bool takes_over(const tape *t, const lifetime *a, const lifetime *b) {
    if (a->last != b->first || a->x->bytes != b->x->bytes || a->x->home != TENSOR_TEMPORARY) return false;
    const record *r = tape_record(t, b->first);
    return r->op->in_place >= 0 && r->in[r->op->in_place] == a->x && r->out[0] == b->x;
}

static int check_overlaps(const net *n) {
    int count, taken = 0;
    lifetime *list = find_lifetimes(n->tape, &count);
    for (int i = 0; i < count; i++) {
        const lifetime *a = &list[i];
        assert_true(a->x->offset % 256 == 0 && a->x->offset + a->x->bytes <= plan_arena_bytes(n->plan));
        for (int k = 0; k < count; k++) {
            const lifetime *b = &list[k];
            bool same_time = a->first <= b->last && b->first <= a->last;
            bool same_place = a->x->offset < b->x->offset + b->x->bytes && b->x->offset < a->x->offset + a->x->bytes;
            if (i == k || !same_time || !same_place) continue;
            assert_true(takes_over(n->tape, a, b) || takes_over(n->tape, b, a));
            taken++;
        }
    }
    free(list);
    return taken / 2;
}

/* After tape_backward every record has a purpose. */
static void check_no_dead_records(const net *n) {
    for (int i = 0; i < tape_length(n->tape); i++) {
        const record *r = tape_record(n->tape, i);
        bool alive = false;
        for (int k = 0; k < RECORD_OUTPUTS && !alive; k++) {
            const tensor *y = r->out[k];
            alive = y && (y->home == TENSOR_PARAMETER || y->keep);
            for (int j = i + 1; y && j < tape_length(n->tape) && !alive; j++)
                for (int m = 0; m < RECORD_INPUTS; m++) alive |= tape_record(n->tape, j)->in[m] == y;
        }
        assert_true(alive);
    }
}

static void test_memory(void **state) {
    (void)state;
    device *d = open_device("cpu");
    int taken = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        net n;
        net_build(&n, d, seed, 10 + (int)(seed % 30), seed % 3 == 0);
        check_no_dead_records(&n);
        net_plan(&n);
        taken += check_overlaps(&n);
        net_free(&n);
    }
    print_message("%d tensors took over another's memory\n", taken);
    assert_true(taken > 100);
    assert_int_equal(d->live_bytes, 0);
    device_close(d);
}

/* ---- values ---- */

/* Shared memory, checkpointing and repetition change no bit. */
static void test_sharing_changes_nothing(void **state) {
    (void)state;
    device *d = open_device("cpu");
    for (uint64_t seed = 0; seed < 60; seed++) {
        enum { SHARED, CHECKPOINTED, KEPT, WAYS };
        float loss[WAYS], *gradients[WAYS];
        size_t bytes = 0;
        for (int way = 0; way < WAYS; way++) {
            net n;
            net_build(&n, d, seed, 10 + (int)(seed % 30), way == CHECKPOINTED);
            if (way == KEPT)
                for (int i = 0; i < tape_length(n.tape); i++)
                    for (int k = 0; k < RECORD_OUTPUTS; k++)
                        if (tape_record(n.tape, i)->out[k]) tape_keep(tape_record(n.tape, i)->out[k]);
            net_plan(&n);
            loss[way] = net_run(&n);
            gradients[way] = net_gradients(&n);
            bytes = net_parameters(&n) * sizeof(float);
            /* Inputs were not overwritten, and gradients add up. */
            assert_true(net_run(&n) == loss[way]);
            float *twice = net_gradients(&n);
            for (size_t i = 0; i < net_parameters(&n); i++) twice[i] /= 2;
            assert_true(relative_error(twice, gradients[way], net_parameters(&n)) < 1e-6);
            free(twice);
            net_free(&n);
        }
        assert_true(isfinite(loss[SHARED]) && loss[SHARED] == loss[CHECKPOINTED] && loss[SHARED] == loss[KEPT]);
        assert_memory_equal(gradients[SHARED], gradients[KEPT], bytes);
        assert_memory_equal(gradients[SHARED], gradients[CHECKPOINTED], bytes);
        for (int way = 0; way < WAYS; way++) free(gradients[way]);
    }
    device_close(d);
}

static int count_narrow(const net *n) {
    int count = 0;
    for (int i = 0; i < tape_length(n->tape); i++)
        for (int k = 0; k < RECORD_OUTPUTS; k++) {
            const tensor *y = tape_record(n->tape, i)->out[k];
            count += y && y->home == TENSOR_TEMPORARY && y->type == DTYPE_BF16;
        }
    return count;
}

/* With every set of kernels that computes in bf16: storing in bf16 what only products read changes no bit. */
static void test_narrowing_changes_nothing(void **state) {
    (void)state;
    int narrowed = 0;
    for (int set = 0; cpu_kernels_at(set); set++) {
        if (!cpu_kernels_at(set)->bf16) continue;
        error err;
        device *d = device_open("cpu", "bf16", 2, &err);
        assert_non_null(d);
        assert_true(device_set_kernels(d, cpu_kernels_at(set)->name, &err));
        for (uint64_t seed = 0; seed < 60; seed++) {
            float loss[2], *gradients[2];
            size_t bytes = 0;
            for (int wide = 0; wide < 2; wide++) {
                net n;
                d->wide = wide;
                net_build(&n, d, seed, 10 + (int)(seed % 30), seed % 4 == 0);
                net_plan(&n);
                narrowed += count_narrow(&n);
                assert_true(!wide || count_narrow(&n) == 0);
                loss[wide] = net_run(&n);
                gradients[wide] = net_gradients(&n);
                bytes = net_parameters(&n) * sizeof(float);
                net_free(&n);
            }
            assert_true(isfinite(loss[0]) && loss[0] == loss[1]);
            assert_memory_equal(gradients[0], gradients[1], bytes);
            free(gradients[0]);
            free(gradients[1]);
        }
        device_close(d);
    }
    print_message("%d tensors in bf16\n", narrowed);
    assert_true(narrowed > 100 || !cpu_kernels_at(0) || !cpu_kernels_at(0)->bf16);
}

static const void *source_get(void *user, void **owned, error *err) {
    (void)owned, (void)err;
    return user;
}

/* x w^T of a declared w, kept; *p: its plan. */
static tensor *linear_plan(device *d, tensor *w, plan **p, tensor **x) {
    error err;
    tape *t = tape_create(d);
    *x = tape_input(t, "x", DTYPE_F32, 2, (int64_t[]){50, 96});
    tensor *y = op_linear(t, *x, w, NULL, NULL, 1);
    tape_keep(y);
    if (!(*p = plan_create(t, &err))) fail_msg("%s", err.text);
    return y;
}

static float *linear_run(device *d, plan *p, tensor *x, const tensor *y) {
    error err;
    float *values = case_values(5, 50 * 96, 1, 0), *out = memory_new((size_t)tensor_count(y), sizeof *out);
    if (!tensor_write(d, x, values, &err) || !plan_run(p, &err) || !tensor_read(d, y, out, &err)) fail_msg("%s", err.text);
    free(values);
    return out;
}

/* Weights that only products read are packed; a tape that reads them otherwise gets them as they are, and earlier plans go on. */
static void test_packed_weights(void **state) {
    (void)state;
    error err;
    device *d = device_open("cpu", cpu_kernels_at(0) && cpu_kernels_at(0)->pack ? "bf16" : "fp32", 2, &err);
    assert_non_null(d);
    if (!d->bf16) skip();
    tensor_pool *pool = tensor_pool_create(d);
    const int64_t dim[2] = {64, 96};
    float *values = case_values(6, 64 * 96, 0.1f, 0);
    tensor *w = tensor_pool_declare(pool, "w", DTYPE_F32, 2, dim, (constant_source){source_get, NULL, values});
    tensor *x, *other_x;
    plan *packed, *other;
    tensor *y = linear_plan(d, w, &packed, &x);
    assert_true(w->packed && d->live_bytes == plan_arena_bytes(packed) + w->bytes);
    float *first = linear_run(d, packed, x, y);

    tape *t = tape_create(d);
    tensor *zero = tape_input(t, "zero", DTYPE_F32, 2, dim), *sum = op_add(t, w, zero);
    tape_keep(sum);
    other = plan_create(t, &err);
    assert_true(other && !w->packed && plan_run(other, &err));
    assert_memory_equal(sum->cpu, values, sizeof(float) * 64 * 96);
    plan_free(other);

    tensor *other_y = linear_plan(d, w, &other, &other_x);
    float *again = linear_run(d, packed, x, y), *unpacked = linear_run(d, other, other_x, other_y);
    assert_true(!w->packed);
    assert_memory_equal(first, again, sizeof(float) * 50 * 64);
    assert_memory_equal(first, unpacked, sizeof(float) * 50 * 64);
    free(first), free(again), free(unpacked), free(values);
    plan_free(packed), plan_free(other);
    tensor_pool_free(pool);
    assert_int_equal(d->live_bytes, 0);
    device_close(d);
}

/* The loss with every parameter moved by step times a fixed random direction. */
static float loss_at(net *n, float step) {
    error err;
    for (int i = 0; i < n->parameter_count; i++) {
        size_t count = (size_t)tensor_count(n->parameters[i]);
        float *values = memory_new(count, sizeof *values), *direction = case_values(500 + (uint64_t)i, count, 1, 0);
        assert_true(tensor_read(n->device, n->parameters[i], values, &err));
        for (size_t k = 0; k < count; k++) values[k] += step * direction[k];
        assert_true(tensor_write(n->device, n->parameters[i], values, &err));
        free(values);
        free(direction);
    }
    return net_run(n);
}

/* The gradient along a random direction against central differences (fourth order): several consumers of one tensor, residuals and all. */
static void test_finite_differences(void **state) {
    (void)state;
    device *d = open_device("cpu");
    double worst = 0;
    int checked = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        net n;
        net_build(&n, d, seed, 10 + (int)(seed % 20), false);
        net_plan(&n);
        net_run(&n);
        float *gradients = net_gradients(&n), *at = gradients;
        double slope = 0, norm = 0;
        for (int i = 0; i < n.parameter_count; i++) {
            size_t count = (size_t)tensor_count(n.parameters[i]);
            float *direction = case_values(500 + (uint64_t)i, count, 1, 0);
            for (size_t k = 0; k < count; k++) {
                slope += (double)at[k] * (double)direction[k];
                norm += (double)at[k] * (double)at[k];
            }
            at += count;
            free(direction);
        }
        checked += norm > 0;
        const float h = 1.0f / 512;
        double far = -(double)loss_at(&n, -2 * h), near = -(double)loss_at(&n, h);
        near += (double)loss_at(&n, 2 * h), far += (double)loss_at(&n, h);
        double difference = (8 * near - far) / (12 * (double)h), e = fabs(difference - slope) / fmax(sqrt(norm), 1e-3);
        if (e > worst) worst = e;
        if (!(e < 2e-2)) fail_msg("network %d: slope %g, by differences %g", (int)seed, slope, difference);
        free(gradients);
        net_free(&n);
    }
    print_message("worst %.1e of the gradient's length\n", worst);
    assert_true(checked > 40);
    device_close(d);
}

static void test_vulkan(void **state) {
    (void)state;
    device *gpu_device = open_device("llvmpipe"), *cpu = open_device("cpu");
    double worst = 0;
    for (uint64_t seed = 0; seed < 12; seed++) {
        float *gradients[2];
        size_t count = 0;
        for (int way = 0; way < 2; way++) {
            net n;
            net_build(&n, way ? gpu_device : cpu, seed, 10 + (int)(seed % 30), seed % 2 == 0);
            net_plan(&n);
            if (way) check_overlaps(&n);
            net_run(&n);
            gradients[way] = net_gradients(&n);
            count = net_parameters(&n);
            net_free(&n);
        }
        double e = relative_error(gradients[1], gradients[0], count);
        if (e > worst) worst = e;
        if (!(e < 1e-4)) fail_msg("network %d: gradients differ by %g", (int)seed, e);
        free(gradients[0]);
        free(gradients[1]);
    }
    print_message("worst difference %.1e\n", worst);
    device_close(cpu);
    device_close(gpu_device);
}

/* ---- particular tapes ---- */

/* A chain of equal segments: checkpointing keeps little more than one segment and the borders. */
static void test_checkpointing_saves_memory(void **state) {
    (void)state;
    device *d = open_device("cpu");
    plan_size size[2];
    for (int checkpointing = 0; checkpointing < 2; checkpointing++) {
        error err;
        net n = {.device = d, .tape = tape_create(d), .pool = tensor_pool_create(d), .seed = 3};
        tensor *x = tape_input(n.tape, "x", DTYPE_COUNT, 4, (int64_t[]){1, 16, 16, 8});
        tensor *w = tensor_pool_parameter(n.pool, "w", 2, (int64_t[]){8, 8}, &err);
        w->grad = tensor_pool_parameter(n.pool, "dw", 2, (int64_t[]){8, 8}, &err), w->needs_grad = true;
        for (int i = 0; i < 8; i++) {
            tape_segment(n.tape);
            for (int k = 0; k < 6; k++) x = op_activation(n.tape, op_linear(n.tape, x, w, NULL, NULL, 1), ACTIVATION_GELU);
        }
        tensor *target = tape_input(n.tape, "target", DTYPE_F32, 4, x->dim),
               *seed = tape_input(n.tape, "seed", DTYPE_F32, 1, &(int64_t){1});
        tape_backward(n.tape, op_mse(n.tape, x, target), seed, checkpointing != 0);
        assert_true(plan_measure(n.tape, &size[checkpointing], &err));
        net_free(&n);
    }
    print_message("%zu KiB, with checkpointing %zu KiB\n", size[0].arena >> 10, size[1].arena >> 10);
    assert_true(size[1].arena * 2 < size[0].arena);
    device_close(d);
}

/* A chain of products with norms, activations and joins between them: of all that, only what products made is kept. */
static void test_cheap_outputs_are_not_kept(void **state) {
    (void)state;
    error err;
    enum { LAYERS = 12 };
    device *d = open_device("cpu");
    net n = {.device = d, .tape = tape_create(d), .pool = tensor_pool_create(d), .seed = 3};
    tensor *x = tape_input(n.tape, "x", DTYPE_COUNT, 4, (int64_t[]){1, 32, 32, 16});
    const size_t each = x->bytes;
    tensor *w = tensor_pool_parameter(n.pool, "w", 2, (int64_t[]){16, 32}, &err);
    w->grad = tensor_pool_parameter(n.pool, "dw", 2, (int64_t[]){16, 32}, &err), w->needs_grad = true;
    x = op_linear(n.tape, op_concat(n.tape, x, x), w, NULL, NULL, 1);
    for (int i = 0; i < LAYERS; i++) {
        tensor *normed = op_group_norm(n.tape, x, vector(&n, 16, 1), vector(&n, 16, 0), 4, 1e-5f, true);
        tensor *both = op_concat(n.tape, normed, op_activation(n.tape, normed, ACTIVATION_GELU));
        x = op_linear(n.tape, op_layer_norm(n.tape, both, vector(&n, 32, 1), vector(&n, 32, 0), 1e-5f), w, NULL, x, 1);
    }
    tensor *target = tape_input(n.tape, "target", DTYPE_F32, 4, x->dim), *seed = tape_input(n.tape, "seed", DTYPE_F32, 1, &(int64_t){1});
    tape_backward(n.tape, op_mse(n.tape, x, target), seed, false);
    plan_size size;
    assert_true(plan_measure(n.tape, &size, &err));
    print_message("%.1f tensors for %d layers\n", (double)size.live / (double)each, LAYERS);
    assert_true(size.live < (LAYERS + 16) * each); /* with everything kept: 6 each */
    net_free(&n);
    device_close(d);
}

/* ---- constants that are loaded when they are needed ---- */

typedef struct shelf {
    float values[4];
    int gets, dones;
    bool copied, broken;
} shelf;

static const void *shelf_get(void *user, void **owned, error *err) {
    shelf *s = user;
    s->gets++;
    if (s->broken) error_set(err, "the shelf is broken");
    if (s->broken || !s->copied) return s->broken ? NULL : s->values;
    *owned = memory_try_aligned(sizeof s->values);
    memcpy(*owned, s->values, sizeof s->values);
    return *owned;
}

static void shelf_done(void *user) { ((shelf *)user)->dones++; }

static void test_constants_are_loaded_by_plans(void **state) {
    (void)state;
    error err;
    device *d = open_device("cpu");
    tensor_pool *pool = tensor_pool_create(d);
    shelf used = {.values = {1, 2, 3, 4}}, copied = {.values = {5, 6, 7, 8}, .copied = true}, other = {.gets = 0},
          broken = {.broken = true};
    shelf *all[] = {&used, &copied, &other, &broken};
    tensor *c[4];
    for (int i = 0; i < 4; i++)
        c[i] = tensor_pool_declare(pool, "shelf", DTYPE_F32, 2, (int64_t[]){2, 2}, (constant_source){shelf_get, shelf_done, all[i]});
    tape *t = tape_create(d);
    tensor *sum = op_add(t, c[0], c[1]);
    tape_keep(sum);
    plan_size size;
    assert_true(plan_measure(t, &size, &err));
    assert_int_equal(size.constants, 32);
    assert_int_equal(size.missing, 32);
    assert_true(d->live_bytes == 0 && used.gets + copied.gets == 0);
    plan *p = plan_create(t, &err);
    assert_non_null(p);
    assert_true(tensor_is_loaded(c[0]) && tensor_is_loaded(c[1]) && !tensor_is_loaded(c[2]));
    assert_int_equal(d->live_bytes, 32 + plan_arena_bytes(p));
    assert_true(plan_measure(t, &size, &err) && size.constants == 32 && size.missing == 0);
    assert_true(used.gets == 1 && copied.gets == 1 && used.dones == 0 && copied.dones == 1); /* one is used where it lies */
    float read[4];
    assert_true(plan_run(p, &err) && tensor_read(d, sum, read, &err));
    for (int i = 0; i < 4; i++) assert_true(read[i] == used.values[i] + copied.values[i]);
    plan_free(p);
    t = tape_create(d);
    tape_keep(op_add(t, c[0], c[3]));
    assert_null(plan_create(t, &err));
    assert_string_equal(err.text, "the shelf is broken");
    assert_true(used.gets == 1 && other.gets == 0);
    tensor_pool_free(pool);
    assert_int_equal(d->live_bytes, 0);
    device_close(d);
}

static void test_first_failure_stays(void **state) {
    (void)state;
    error err;
    device *d = open_device("cpu");
    tape *t = tape_create(d);
    tensor *x = tape_input(t, "x", DTYPE_COUNT, 2, (int64_t[]){2, 3}), *y = tape_input(t, "y", DTYPE_COUNT, 2, (int64_t[]){2, 4});
    assert_null(tape_error(t));
    tensor *sum = op_add(t, x, y);
    assert_null(sum);
    char first[512];
    snprintf(first, sizeof first, "%s", tape_error(t));
    assert_non_null(strstr(first, "[2, 3]"));
    assert_null(op_concat(t, sum, x));
    assert_null(op_mse(t, x, y));
    assert_null(tape_fail(t, "later"));
    assert_string_equal(tape_error(t), first);
    tape_backward(t, x, y, false);
    tape_keep(NULL);
    plan_size size;
    assert_false(plan_measure(t, &size, &err));
    assert_string_equal(err.text, first);
    assert_null(plan_create(t, &err));
    assert_string_equal(err.text, first);
    device_close(d);
}

/* What is kept can be read after the run; what nobody touches takes no memory, and writing to it is allowed. */
static void test_kept_and_untouched(void **state) {
    (void)state;
    error err;
    device *d = open_device("cpu");
    tape *t = tape_create(d);
    const int64_t dim[1] = {1000};
    tensor *x = tape_input(t, "x", DTYPE_COUNT, 1, dim), *unused = tape_input(t, "unused", DTYPE_COUNT, 1, dim);
    tensor *twice = op_add(t, x, x), *y = twice;
    tape_keep(twice);
    for (int i = 0; i < 20; i++) y = op_add(t, y, x);
    tape_keep(y);
    plan *p = plan_create(t, &err);
    assert_non_null(p);
    assert_int_equal(plan_arena_bytes(p), 3 * 4096); /* x, twice, and one place for all sums */
    float *values = case_values(1, 1000, 1, 0), read[1000];
    assert_true(tensor_write(d, x, values, &err) && tensor_write(d, unused, values, &err));
    for (int run = 0; run < 2; run++) {
        assert_true(plan_run(p, &err) && tensor_read(d, twice, read, &err));
        for (int i = 0; i < 1000; i++) assert_true(read[i] == 2 * values[i]);
        assert_true(tensor_read(d, y, read, &err));
        for (int i = 0; i < 1000; i++) assert_true(fabsf(read[i] - 22 * values[i]) < 1e-4f);
    }
    assert_false(tensor_read(d, unused, read, &err));
    assert_non_null(strstr(err.text, "unused"));
    free(values);
    plan_free(p);
    device_close(d);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    validation_begin();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_sharing_changes_nothing),
        cmocka_unit_test(test_narrowing_changes_nothing),
        cmocka_unit_test(test_packed_weights),
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_checkpointing_saves_memory),
        cmocka_unit_test(test_cheap_outputs_are_not_kept),
        cmocka_unit_test(test_constants_are_loaded_by_plans),
        cmocka_unit_test(test_first_failure_stays),
        cmocka_unit_test(test_kept_and_untouched),
        cmocka_unit_test(test_vulkan),
    };
    return validation_end(cmocka_run_group_tests_name("graph", tests, NULL, NULL));
}
