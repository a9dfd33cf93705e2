/* Every operation on the software Vulkan device against the CPU executor: results and all gradients, in fp32 and with fp16 storage.
   VULORA_TEST_GPU names another device to test. */
#include "base/memory.h"
#include "graph/plan.h"
#include "ops/ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST_INPUTS = 5, MOST_RESULTS = 16 };

/* HOST: an fp32 input from outside. WEIGHT: a trained parameter. */
typedef enum role { NONE, ACTIVATION, HOST, WEIGHT, FROZEN_WEIGHT, VECTOR } role;

typedef struct input {
    role role;
    int rank;
    int64_t dim[TENSOR_RANK];
} input;

typedef struct test_case {
    const char *name;
    input in[MOST_INPUTS];
    int64_t i[6];
    tensor *(*build)(tape *t, tensor *const *in, const int64_t *i);
} test_case;

static tensor *linear(tape *t, tensor *const *in, const int64_t *i) { return op_linear(t, in[0], in[1], in[2], in[3], i[0] ? 0.5f : 1.0f); }
static tensor *conv(tape *t, tensor *const *in, const int64_t *i) {
    return op_conv2d(t, in[0], in[1], in[2], in[3], in[4], (conv_shape){(int)i[0], (int)i[1], (int)i[2], (int)i[3]});
}
static tensor *group_norm(tape *t, tensor *const *in, const int64_t *i) {
    return op_group_norm(t, in[0], in[1], in[2], (int)i[0], 1e-5f, i[1] != 0);
}
static tensor *layer_norm(tape *t, tensor *const *in, const int64_t *i) {
    (void)i;
    return op_layer_norm(t, in[0], in[1], in[2], 1e-5f);
}
static tensor *attention(tape *t, tensor *const *in, const int64_t *i) {
    return op_attention(t, in[0], in[1], in[2], (int)i[0], i[1] != 0);
}
static tensor *curve(tape *t, tensor *const *in, const int64_t *i) { return op_activation(t, in[0], (activation)i[0]); }
static tensor *geglu(tape *t, tensor *const *in, const int64_t *i) {
    (void)i;
    return op_geglu(t, in[0]);
}
static tensor *add(tape *t, tensor *const *in, const int64_t *i) {
    (void)i;
    return op_add(t, in[0], in[1]);
}
static tensor *concat(tape *t, tensor *const *in, const int64_t *i) {
    (void)i;
    return op_concat(t, in[0], in[1]);
}
static tensor *upsample(tape *t, tensor *const *in, const int64_t *i) { return op_upsample(t, in[0], i[0], i[1]); }

/* clang-format off */
static const test_case cases[] = {
    {"linear", {{ACTIVATION, 2, {70, 36}}, {FROZEN_WEIGHT, 2, {52, 36}}, {VECTOR, 1, {52}}, {ACTIVATION, 2, {70, 52}}}, {0}, linear},
    {"linear, odd", {{ACTIVATION, 3, {1, 33, 19}}, {WEIGHT, 2, {7, 19}}, {VECTOR, 1, {7}}}, {1}, linear},
    {"linear, large", {{ACTIVATION, 3, {2, 300, 64}}, {FROZEN_WEIGHT, 2, {520, 64}}}, {0}, linear},
    {"linear, rank 4 down", {{ACTIVATION, 3, {3, 257, 48}}, {WEIGHT, 2, {4, 48}}}, {1}, linear},
    {"linear, rank 4 up", {{ACTIVATION, 3, {3, 257, 4}}, {WEIGHT, 2, {80, 4}}, {NONE, 0, {0}}, {ACTIVATION, 3, {3, 257, 80}}}, {1}, linear},
    {"linear, one row", {{ACTIVATION, 2, {1, 128}}, {WEIGHT, 2, {33, 128}}, {VECTOR, 1, {33}}}, {0}, linear},
    {"conv 3x3", {{ACTIVATION, 4, {2, 7, 9, 12}}, {FROZEN_WEIGHT, 3, {9, 20, 12}}, {VECTOR, 1, {20}}, {ACTIVATION, 4, {2, 7, 9, 20}}, {ACTIVATION, 2, {2, 20}}}, {3, 1, 1, 1}, conv},
    {"conv 3x3, 3 channels", {{ACTIVATION, 4, {1, 11, 6, 3}}, {WEIGHT, 3, {9, 5, 3}}, {VECTOR, 1, {5}}}, {3, 1, 1, 1}, conv},
    {"conv 3x3, stride 2", {{ACTIVATION, 4, {3, 9, 8, 8}}, {WEIGHT, 3, {9, 4, 8}}, {VECTOR, 1, {4}}}, {3, 2, 1, 1}, conv},
    {"conv 3x3, stride 2, padded behind", {{ACTIVATION, 4, {1, 8, 10, 16}}, {FROZEN_WEIGHT, 3, {9, 24, 16}}}, {3, 2, 0, 1}, conv},
    {"conv 1x1", {{ACTIVATION, 4, {1, 5, 5, 24}}, {WEIGHT, 3, {1, 8, 24}}, {VECTOR, 1, {8}}}, {1, 1, 0, 0}, conv},
    {"conv 3x3 of a host input", {{HOST, 4, {1, 8, 8, 4}}, {FROZEN_WEIGHT, 3, {9, 32, 4}}, {VECTOR, 1, {32}}, {NONE, 0, {0}}, {ACTIVATION, 2, {1, 32}}}, {3, 1, 1, 1}, conv},
    {"linear of a host input", {{HOST, 3, {2, 77, 48}}, {WEIGHT, 2, {8, 48}}}, {0}, linear},
    {"group norm of a host input", {{HOST, 4, {1, 4, 4, 16}}, {VECTOR, 1, {16}}, {VECTOR, 1, {16}}}, {4, 1}, group_norm},
    {"attention to host inputs", {{HOST, 3, {1, 20, 32}}, {HOST, 3, {1, 30, 32}}, {HOST, 3, {1, 30, 32}}}, {2, 0}, attention},
    {"conv 3x3, large", {{ACTIVATION, 4, {1, 32, 32, 32}}, {FROZEN_WEIGHT, 3, {9, 128, 32}}}, {3, 1, 1, 1}, conv},
    {"conv 3x3, rank 4 down", {{ACTIVATION, 4, {2, 32, 32, 36}}, {WEIGHT, 3, {9, 4, 36}}}, {3, 1, 1, 1}, conv},
    {"group norm", {{ACTIVATION, 4, {2, 6, 5, 32}}, {VECTOR, 1, {32}}, {VECTOR, 1, {32}}}, {8, 0}, group_norm},
    {"group norm, silu", {{ACTIVATION, 4, {1, 9, 7, 30}}, {VECTOR, 1, {30}}, {VECTOR, 1, {30}}}, {5, 1}, group_norm},
    {"group norm, large", {{ACTIVATION, 4, {1, 40, 40, 32}}, {VECTOR, 1, {32}}, {VECTOR, 1, {32}}}, {4, 1}, group_norm},
    {"layer norm", {{ACTIVATION, 3, {2, 13, 96}}, {VECTOR, 1, {96}}, {VECTOR, 1, {96}}}, {0}, layer_norm},
    {"layer norm, odd", {{ACTIVATION, 3, {1, 5, 37}}, {VECTOR, 1, {37}}, {VECTOR, 1, {37}}}, {0}, layer_norm},
    {"attention, head 40", {{ACTIVATION, 3, {2, 70, 80}}, {ACTIVATION, 3, {2, 77, 80}}, {ACTIVATION, 3, {2, 77, 80}}}, {2, 0}, attention},
    {"attention, head 8", {{ACTIVATION, 4, {1, 6, 6, 32}}, {ACTIVATION, 4, {1, 6, 6, 32}}, {ACTIVATION, 4, {1, 6, 6, 32}}}, {4, 0}, attention},
    {"attention, head 16", {{ACTIVATION, 3, {3, 16, 16}}, {ACTIVATION, 3, {3, 16, 16}}, {ACTIVATION, 3, {3, 16, 16}}}, {1, 0}, attention},
    {"attention, head 64, causal", {{ACTIVATION, 3, {1, 77, 128}}, {ACTIVATION, 3, {1, 77, 128}}, {ACTIVATION, 3, {1, 77, 128}}}, {2, 1}, attention},
    {"attention, head 80", {{ACTIVATION, 3, {1, 33, 80}}, {ACTIVATION, 3, {1, 50, 80}}, {ACTIVATION, 3, {1, 50, 80}}}, {1, 0}, attention},
    {"attention, head 160", {{ACTIVATION, 3, {1, 40, 160}}, {ACTIVATION, 3, {1, 40, 160}}, {ACTIVATION, 3, {1, 40, 160}}}, {1, 0}, attention},
    {"attention, head 6", {{ACTIVATION, 3, {1, 9, 18}}, {ACTIVATION, 3, {1, 11, 18}}, {ACTIVATION, 3, {1, 11, 18}}}, {3, 0}, attention},
    {"attention, head 512", {{ACTIVATION, 3, {1, 24, 512}}, {ACTIVATION, 3, {1, 24, 512}}, {ACTIVATION, 3, {1, 24, 512}}}, {1, 0}, attention},
    {"silu", {{ACTIVATION, 2, {5, 7}}}, {ACTIVATION_SILU}, curve},
    {"gelu", {{ACTIVATION, 2, {40, 64}}}, {ACTIVATION_GELU}, curve},
    {"quick gelu", {{ACTIVATION, 2, {4, 12}}}, {ACTIVATION_QUICK_GELU}, curve},
    {"geglu", {{ACTIVATION, 3, {2, 9, 48}}}, {0}, geglu},
    {"geglu, odd", {{ACTIVATION, 3, {1, 3, 14}}}, {0}, geglu},
    {"add", {{ACTIVATION, 3, {2, 3, 5}}, {ACTIVATION, 3, {2, 3, 5}}}, {0}, add},
    {"concat", {{ACTIVATION, 4, {1, 3, 4, 8}}, {ACTIVATION, 4, {1, 3, 4, 12}}}, {0}, concat},
    {"concat, odd", {{ACTIVATION, 4, {2, 2, 3, 5}}, {ACTIVATION, 4, {2, 2, 3, 3}}}, {0}, concat},
    {"upsample", {{ACTIVATION, 4, {2, 4, 5, 8}}}, {8, 10}, upsample},
    {"upsample, odd", {{ACTIVATION, 4, {1, 3, 5, 3}}}, {7, 9}, upsample},
};
/* clang-format on */

typedef struct results {
    int count;
    size_t size[MOST_RESULTS];
    float *values[MOST_RESULTS]; /* output, loss, gradients in the order of the inputs */
} results;

static void results_free(results *r) {
    for (int i = 0; i < r->count; i++) free(r->values[i]);
}

/* The same numbers every time: a linear congruential generator. */
static float *random_values(size_t n, uint32_t seed, float scale) {
    float *v = memory_new(n, sizeof *v);
    uint32_t state = seed * 2654435761u + 12345u;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = scale * ((float)(state >> 8) / 8388608.0f - 1.0f);
    }
    return v;
}

static void check(bool ok, const error *err) {
    if (!ok) fail_msg("%s", err->text);
}

static void read_result(device *d, const tensor *x, results *out) {
    error err;
    size_t n = (size_t)tensor_count(x);
    out->values[out->count] = memory_new(n, sizeof(float));
    out->size[out->count] = n;
    check(tensor_read(d, x, out->values[out->count++], &err), &err);
}

static tensor *make_trained(tape *t, tensor_pool *pool, const input *in, const float *values) {
    error err;
    tensor *x = tensor_pool_parameter(pool, "weight", in->rank, in->dim, &err);
    check(x != NULL, &err);
    x->grad = tensor_pool_parameter(pool, "gradient", in->rank, in->dim, &err);
    check(x->grad != NULL && tensor_write(tape_device(t), x, values, &err), &err);
    x->needs_grad = true;
    return x;
}

/* An activation is a host input times a trained square matrix: that matrix's gradient checks the activation's. */
static tensor *make_activation(tape *t, tensor_pool *pool, const input *in, tensor **matrix, tensor **host) {
    int64_t c = in->dim[in->rank - 1];
    float *values = random_values((size_t)(c * c), (uint32_t)c, 1.5f / sqrtf((float)c));
    *host = tape_input(t, "input", DTYPE_F32, in->rank, in->dim);
    *matrix = make_trained(t, pool, &(input){WEIGHT, 2, {c, c}}, values);
    free(values);
    return op_linear(t, *host, *matrix, NULL, NULL, 1.0f);
}

static tensor *make_input(tape *t, tensor_pool *pool, const input *in, int index) {
    error err;
    size_t n = 1;
    for (int i = 0; i < in->rank; i++) n *= (size_t)in->dim[i];
    float *values = random_values(n, (uint32_t)index + 1, 0.4f);
    tensor *x = NULL;
    if (in->role == WEIGHT) {
        x = make_trained(t, pool, in, values);
        free(values);
    } else {
        x = tensor_pool_constant_owned(pool, "constant", DTYPE_F32, in->rank, in->dim, values, &err);
        check(x != NULL, &err);
    }
    return x;
}

static void run_case(device *d, const test_case *c, results *out) {
    error err;
    tape *t = tape_create(d);
    tensor_pool *pool = tensor_pool_create(d);
    tensor *in[MOST_INPUTS] = {0}, *trained[MOST_INPUTS] = {0}, *host[MOST_INPUTS] = {0};
    for (int i = 0; i < MOST_INPUTS; i++) {
        if (c->in[i].role == NONE) continue;
        if (c->in[i].role == HOST)
            in[i] = host[i] = tape_input(t, "input", DTYPE_F32, c->in[i].rank, c->in[i].dim);
        else if (c->in[i].role == ACTIVATION)
            in[i] = make_activation(t, pool, &c->in[i], &trained[i], &host[i]);
        else
            in[i] = make_input(t, pool, &c->in[i], i);
        if (c->in[i].role == WEIGHT) trained[i] = in[i];
    }
    tensor *y = c->build(t, in, c->i);
    if (!y) fail_msg("%s: %s", c->name, tape_error(t));
    tensor *target = tape_input(t, "target", DTYPE_F32, y->rank, y->dim), *seed = tape_input(t, "seed", DTYPE_F32, 1, (int64_t[]){1});
    tensor *loss = op_mse(t, y, target);
    tape_keep(y);
    tape_backward(t, loss, seed, false);
    plan *p = plan_create(t, &err);
    check(p != NULL, &err);
    for (int i = 0; i < MOST_INPUTS; i++) {
        if (!host[i]) continue;
        float *values = random_values((size_t)tensor_count(host[i]), (uint32_t)i + 1, 1.0f);
        check(tensor_write(d, host[i], values, &err), &err);
        free(values);
    }
    float *wanted = random_values((size_t)tensor_count(target), 99, 1.0f), scale = (float)tensor_count(target);
    check(tensor_write(d, target, wanted, &err) && tensor_write(d, seed, &scale, &err), &err);
    free(wanted);
    check(plan_run(p, &err), &err);
    read_result(d, y, out);
    read_result(d, loss, out);
    for (int i = 0; i < MOST_INPUTS; i++)
        if (trained[i]) read_result(d, trained[i]->grad, out);
    plan_free(p);
    tensor_pool_free(pool);
}

/* Relative L2 distance. */
static double distance(const float *a, const float *b, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)a[i] * (double)a[i];
    }
    return sqrt(d / (s + 1e-30));
}

static device *open_vulkan(const char *precision) {
    error err;
    const char *name = getenv("VULORA_TEST_GPU");
    device *d = device_open(name ? name : "llvmpipe", precision, 0, &err);
    if (!d) print_message("skipped: %s\n", err.text);
    return d;
}

static void compare(const char *precision, double limit) {
    error err;
    device *vulkan = open_vulkan(precision), *cpu = device_open("cpu", "fp32", 0, &err);
    if (!vulkan) {
        device_close(cpu);
        skip();
    }
    int wrong = 0;
    const char *only = getenv("VULORA_TEST_CASE");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (only && !strstr(cases[i].name, only)) continue;
        results expected = {0}, got = {0};
        run_case(cpu, &cases[i], &expected);
        run_case(vulkan, &cases[i], &got);
        assert_int_equal(expected.count, got.count);
        for (int k = 0; k < got.count; k++) {
            double e = distance(expected.values[k], got.values[k], got.size[k]);
            if (e < limit) continue;
            print_message("%s: result %d: relative error %.2e\n", cases[i].name, k, e);
            wrong++;
        }
        results_free(&expected);
        results_free(&got);
    }
    assert_int_equal(wrong, 0);
    device_close(vulkan);
    device_close(cpu);
}

static void test_fp32(void **state) {
    (void)state;
    compare("fp32", 1e-5);
}

static void test_fp16(void **state) {
    (void)state;
    compare("fp16", 3e-3);
}

/* ---- the update ---- */

enum { PARAMETERS = 3 };

typedef struct update {
    tensor *param[PARAMETERS], *grad[PARAMETERS], *m[PARAMETERS], *v[PARAMETERS], *norm;
} update;

/* Steps with gradients that are too long once, infinite once; parameters and moments afterwards. */
static void run_updates(device *d, const int64_t sizes[PARAMETERS], results *out) {
    error err;
    tensor_pool *pool = tensor_pool_create(d);
    tape *t = tape_create(d);
    update u;
    tensor *control = tape_input(t, "control", DTYPE_F32, 1, (int64_t[]){8});
    for (int i = 0; i < PARAMETERS; i++) {
        tensor **all[] = {&u.param[i], &u.grad[i], &u.m[i], &u.v[i]};
        for (int k = 0; k < 4; k++) {
            *all[k] = tensor_pool_parameter(pool, "parameter", 1, &sizes[i], &err);
            check(*all[k] != NULL, &err);
        }
    }
    u.norm = op_grad_norm(t, u.grad, PARAMETERS, control);
    for (int i = 0; i < PARAMETERS; i++) op_adamw(t, u.param[i], u.grad[i], u.m[i], u.v[i], control, u.norm, 40.0f);
    plan *p = plan_create(t, &err);
    check(p != NULL, &err);
    for (int step = 1; step <= 4; step++) {
        float values[8] = {1e-2f, 0.9f, 0.99f, 1e-8f, 0.01f, 1 - powf(0.9f, (float)step), 1 - powf(0.99f, (float)step), 0.125f};
        check(tensor_write(d, control, values, &err), &err);
        for (int i = 0; i < PARAMETERS; i++) {
            float *g = random_values((size_t)sizes[i], (uint32_t)(10 * step + i), step == 2 ? 8.0f : 0.5f);
            if (step == 3 && i == 1) g[4] = INFINITY;
            check(tensor_write(d, u.grad[i], g, &err), &err);
            free(g);
        }
        check(plan_run(p, &err), &err);
        if (step == 2) read_result(d, u.norm, out);
    }
    for (int i = 0; i < PARAMETERS; i++) {
        tensor *all[] = {u.param[i], u.m[i], u.v[i], u.grad[i]};
        for (int k = 0; k < 4; k++) read_result(d, all[k], out);
    }
    plan_free(p);
    tensor_pool_free(pool);
}

static void test_update(void **state) {
    (void)state;
    error err;
    device *vulkan = open_vulkan("fp32"), *cpu = device_open("cpu", "fp32", 0, &err);
    if (!vulkan) {
        device_close(cpu);
        skip();
    }
    const int64_t sizes[PARAMETERS] = {7, 5000, 100001};
    results expected = {0}, got = {0};
    run_updates(cpu, sizes, &expected);
    run_updates(vulkan, sizes, &got);
    for (int k = 0; k < got.count; k++) {
        double e = distance(expected.values[k], got.values[k], got.size[k]);
        if (!(e < 1e-5)) fail_msg("result %d: relative error %.2e", k, e);
    }
    results_free(&expected);
    results_free(&got);
    device_close(vulkan);
    device_close(cpu);
}

static void test_validation_is_silent(void **state) {
    (void)state;
    const char *first;
    int count = gpu_validation_messages(&first);
    if (count) fail_msg("%d messages from the validation layer, the first: %s", count, first);
}

int main(void) {
#ifndef __SANITIZE_ADDRESS__ /* the layer itself leaks */
    setenv("VULORA_VK_VALIDATE", "1", 0);
#endif
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fp32), cmocka_unit_test(test_fp16), cmocka_unit_test(test_update),
                                       cmocka_unit_test(test_validation_is_silent)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
