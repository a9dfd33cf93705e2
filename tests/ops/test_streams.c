/* The Vulkan kernels that memory bounds, norms, element by element and the optimizer, against the CPU: every way to share out rows,
   channels and pixels that ops/norm.c and its neighbours choose between, with the kernels for cards and those for software devices. That
   the CPU is right is test_ops' affair. VULORA_TEST_GPU names another device than lavapipe. */
#include "graph/plan.h"
#include "ops/ops.h"
#include "tests/support/validation.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "case_file.h"
#include "poison.h"

enum { MOST_LEAVES = 6, MOST_RESULTS = 4 };

/* Inputs and what is read back: the output, then the gradients of the first inputs. */
typedef struct trial {
    device *device;
    tape *tape;
    bool prior; /* inputs have a gradient to add to */
    struct {
        tensor *tensor;
        float scale, shift;
    } leaf[MOST_LEAVES];
    int leaves;
    tensor *x[2], *result[MOST_RESULTS];
    int inputs, results;
} trial;

typedef struct test_case {
    const char *name;
    tensor *(*build)(trial *t, const int64_t *i);
    int64_t i[6];
} test_case;

static tensor *leaf_of(trial *t, dtype type, int rank, const int64_t *dim, float scale, float shift) {
    assert_true(t->leaves < MOST_LEAVES);
    tensor *x = tape_input(t->tape, "leaf", type, rank, dim);
    t->leaf[t->leaves].tensor = x;
    t->leaf[t->leaves].scale = scale;
    t->leaf[t->leaves++].shift = shift;
    return x;
}

static tensor *input(trial *t, int rank, const int64_t *dim, float scale, float shift) {
    tensor *x = leaf_of(t, DTYPE_COUNT, rank, dim, scale, shift);
    x->needs_grad = true;
    if (t->prior) x->grad = leaf_of(t, DTYPE_COUNT, rank, dim, 1, 0);
    return t->x[t->inputs++] = x;
}

static tensor *vector(trial *t, int64_t n, float shift) { return leaf_of(t, DTYPE_F32, 1, &n, 1, shift); }

/* images, height, width, channels, groups, silu */
static tensor *group_norm(trial *t, const int64_t *i) {
    tensor *x = input(t, 4, i, 1, 0.75f);
    return op_group_norm(t->tape, x, vector(t, i[3], 1), vector(t, i[3], 0), (int)i[4], 1e-5f, i[5] != 0);
}
static tensor *layer_norm(trial *t, const int64_t *i) { /* rows, width */
    tensor *x = input(t, 2, i, 1, 0.5f);
    return op_layer_norm(t->tape, x, vector(t, i[1], 1), vector(t, i[1], 0), 1e-5f);
}
static tensor *geglu(trial *t, const int64_t *i) { return op_geglu(t->tape, input(t, 2, (int64_t[]){i[0], 2 * i[1]}, 5, 0)); }
static tensor *activated(trial *t, const int64_t *i) { return op_activation(t->tape, input(t, 1, i, 6, 0), (activation)i[1]); }
static tensor *add(trial *t, const int64_t *i) { return op_add(t->tape, input(t, 1, i, 1, 0), input(t, 1, i, 1, 0)); }
/* rows, widths, and which side wants no gradient: 1 the first, 2 the second */
static tensor *concat(trial *t, const int64_t *i) {
    tensor *a = input(t, 2, (int64_t[]){i[0], i[1]}, 1, 0), *b = input(t, 2, (int64_t[]){i[0], i[2]}, 1, 0);
    if (i[3]) t->x[i[3] - 1]->needs_grad = false;
    return op_concat(t->tape, a, b);
}
static tensor *upsample(trial *t, const int64_t *i) { return op_upsample(t->tape, input(t, 4, i, 1, 0), i[4], i[5]); }
static tensor *sum_pixels(trial *t, const int64_t *i) { return op_sum_pixels(t->tape, leaf_of(t, DTYPE_COUNT, 3, i, 1, 0)); }
static tensor *mse(trial *t, const int64_t *i) {
    tensor *x = input(t, 1, i, 1, 0);
    return op_mse(t->tape, x, leaf_of(t, DTYPE_F32, 1, i, 1, 0));
}

/* The kernels for cards hold a group of up to 96 elements a thread (gradients: 64) in a workgroup, software's 16. */
static const test_case cases[] = {
    {"a group in a workgroup, eights", group_norm, {2, 8, 8, 128, 4, 1}},
    {"a group in a workgroup, fours", group_norm, {1, 7, 9, 40, 2, 0}},
    {"a group in a workgroup, ones", group_norm, {3, 3, 5, 9, 3, 1}},
    {"the largest group held", group_norm, {1, 16, 16, 160, 2, 1}},
    {"a group of which only the forward pass is held", group_norm, {1, 16, 17, 120, 2, 1}},
    {"blocks of whole pixels, eights", group_norm, {2, 16, 16, 80, 8, 1}},
    {"blocks of whole pixels, no activation", group_norm, {1, 32, 32, 80, 8, 0}},
    {"blocks that end early, fours", group_norm, {2, 13, 37, 36, 6, 1}},
    {"blocks that end early, ones", group_norm, {1, 33, 41, 33, 11, 1}},
    {"blocks of several rounds", group_norm, {1, 64, 81, 256, 32, 1}},
    {"one group", group_norm, {1, 40, 40, 8, 1, 0}},
    {"groups of one channel", group_norm, {1, 20, 20, 24, 24, 1}},
    {"rows of 320", layer_norm, {65, 320}},
    {"rows of 768", layer_norm, {77, 768}},
    {"rows of 1280", layer_norm, {9, 1280}},
    {"rows of fours", layer_norm, {33, 644}},
    {"rows of ones", layer_norm, {10, 77}},
    {"a short row", layer_norm, {1, 8}},
    {"rows shorter than their threads", layer_norm, {17, 40}},
    {"long rows", layer_norm, {3, 4104}},
    {"eights", geglu, {33, 320}},
    {"fours", geglu, {7, 12}},
    {"ones", geglu, {9, 5}},
    {"silu, eights", activated, {4096, ACTIVATION_SILU}},
    {"silu, ones", activated, {1001, ACTIVATION_SILU}},
    {"gelu, fours", activated, {1004, ACTIVATION_GELU}},
    {"quick gelu, eights", activated, {2008, ACTIVATION_QUICK_GELU}},
    {"sums of eights", add, {1032}},
    {"sums of fours", add, {1028}},
    {"sums of ones", add, {1027}},
    {"eights and eights", concat, {50, 64, 24}},
    {"eights and fours", concat, {50, 8, 12}},
    {"ones and eights", concat, {13, 3, 40}},
    {"only the first side's gradient", concat, {21, 16, 32, 2}},
    {"only the second side's gradient", concat, {21, 32, 16, 1}},
    {"twice as large", upsample, {2, 5, 7, 16, 10, 14}},
    {"twice as large, ones", upsample, {1, 5, 7, 3, 10, 14}},
    {"twice as wide", upsample, {1, 4, 6, 8, 7, 12}},
    {"odd sizes, fours", upsample, {2, 4, 5, 12, 7, 9}},
    {"sums over pixels, eights", sum_pixels, {2, 300, 72}},
    {"sums over pixels, fours", sum_pixels, {1, 65, 100}},
    {"sums over pixels, ones", sum_pixels, {1, 200, 35}},
    {"loss of one workgroup", mse, {4096}},
    {"loss of an odd number", mse, {4099}},
    {"loss of several workgroups", mse, {70004}},
};

typedef struct values {
    size_t count[MOST_RESULTS];
    float *of[MOST_RESULTS];
} values;

static void append_backward(trial *t, tensor *y) {
    y->grad = leaf_of(t, y->type == t->device->activation ? DTYPE_COUNT : y->type, y->rank, y->dim, 1, 0);
    for (int i = tape_length(t->tape) - 1; i >= 0; i--) {
        const record *r = tape_record(t->tape, i);
        if (r->op->backward && r->out[0]->needs_grad && tape_get_grad(r->out[0])) r->op->backward(t->tape, r);
    }
}

static void add_result(trial *t, tensor *x) {
    tape_keep(x);
    t->result[t->results++] = x;
}

static values run_case(device *d, const test_case *c, bool prior) {
    error err;
    trial t = {.device = d, .tape = tape_create(d), .prior = prior};
    tensor *y = c->build(&t, c->i);
    if (!y) fail_msg("%s: %s", c->name, tape_error(t.tape));
    add_result(&t, y);
    if (y->needs_grad) append_backward(&t, y);
    for (int i = 0; i < t.inputs; i++)
        if (t.x[i]->needs_grad && t.x[i]->grad->home == TENSOR_TEMPORARY) add_result(&t, t.x[i]->grad);
    plan *p = plan_create(t.tape, &err);
    if (!p || !poison_temporaries(d, t.tape, &err)) fail_msg("%s: %s", c->name, err.text);
    for (int i = 0; i < t.leaves; i++) {
        float *v = case_values((uint64_t)i + 1, (size_t)tensor_count(t.leaf[i].tensor), t.leaf[i].scale, t.leaf[i].shift);
        if (!tensor_write(d, t.leaf[i].tensor, v, &err)) fail_msg("%s: %s", c->name, err.text);
        free(v);
    }
    if (!plan_run(p, &err)) fail_msg("%s: %s", c->name, err.text);
    values out = {{0}, {0}};
    for (int i = 0; i < t.results; i++) {
        out.count[i] = (size_t)tensor_count(t.result[i]);
        out.of[i] = memory_new(out.count[i], sizeof(float));
        if (!tensor_read(d, t.result[i], out.of[i], &err)) fail_msg("%s: %s", c->name, err.text);
    }
    plan_free(p);
    return out;
}

/* NULL: not here. */
static device *open_device(const char *precision, bool large) {
    error err;
    const char *name = getenv("VULORA_TEST_GPU");
    if (large)
        setenv("VULORA_VK_LARGE_KERNELS", "1", 1);
    else
        unsetenv("VULORA_VK_LARGE_KERNELS");
    device *d = device_open(name ? name : "llvmpipe", precision, 0, &err);
    if (!d) print_message("skipped: %s\n", err.text);
    return d;
}

static void compare(const char *precision, double most) {
    device *cpu = device_open("cpu", "fp32", 0, NULL);
    for (int large = 0; large < 2; large++) {
        device *d = open_device(precision, large);
        if (!d) skip();
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            for (int prior = 0; prior < 2; prior++) {
                values expected = run_case(cpu, &cases[c], prior), got = run_case(d, &cases[c], prior);
                for (int k = 0; k < MOST_RESULTS; k++) {
                    double e = got.count[k] ? relative_error(got.of[k], expected.of[k], got.count[k]) : 0;
                    if (!(e <= most))
                        fail_msg("%s%s, %s, result %d%s: error %g, more than %g", precision, large ? ", large kernels" : "", cases[c].name,
                                 k, prior ? " with a gradient before" : "", e, most);
                    free(expected.of[k]);
                    free(got.of[k]);
                }
            }
        device_close(d);
    }
    device_close(cpu);
}

static void test_fp32(void **state) {
    (void)state;
    compare("fp32", 1e-5);
}

static void test_fp16(void **state) {
    (void)state;
    compare("fp16", 2e-3);
}

/* ---- the optimizer: parameters side by side are updated together ---- */

enum { PARAMETERS = 40, KINDS = 4 };

static void fill(device *d, tensor *const *x, int kind) {
    error err;
    for (int i = 0; i < PARAMETERS; i++) {
        float *v = case_values((uint64_t)(100 * kind + i), (size_t)tensor_count(x[i]), 1, kind == 3 ? 1.0f : 0);
        assert_true(tensor_write(d, x[i], v, &err));
        free(v);
    }
}

/* Norm, then every parameter after one step, one behind the other. odd: the place of one whose neighbour lies elsewhere. */
static float *run_update(device *d, int odd, int *records, size_t *count) {
    error err;
    tensor_pool *pool[KINDS], *elsewhere = tensor_pool_create(d);
    tensor *x[KINDS][PARAMETERS];
    for (int k = 0; k < KINDS; k++) {
        pool[k] = tensor_pool_create(d);
        for (int i = 0; i < PARAMETERS; i++) {
            const int64_t dim[] = {1 + i % 3, i == 20 ? 100000 : 5 + 37 * i};
            x[k][i] = tensor_pool_parameter(i == odd && k == 2 ? elsewhere : pool[k], "p", 2, dim, &err);
            assert_non_null(x[k][i]);
        }
        fill(d, x[k], k);
    }
    tape *t = tape_create(d);
    tensor *control = tape_input(t, "control", DTYPE_F32, 1, (int64_t[]){8});
    tensor *norm = op_grad_norm(t, x[1], PARAMETERS, control);
    for (int i = 0; i < PARAMETERS; i++) op_adamw(t, x[0][i], x[1][i], x[2][i], x[3][i], control, norm, 0.5f, NULL);
    *records = tape_length(t);
    plan *p = plan_create(t, &err);
    assert_non_null(p);
    assert_true(tensor_write(d, control, (const float[]){0.01f, 0.9f, 0.99f, 1e-8f, 0.02f, 0.1f, 0.01f, 0.25f}, &err));
    assert_true(plan_run(p, &err));
    *count = 1;
    for (int i = 0; i < PARAMETERS; i++) *count += (size_t)tensor_count(x[0][i]);
    float *out = memory_new(*count, sizeof *out), *at = out;
    assert_true(tensor_read(d, norm, at++, &err));
    for (int i = 0; i < PARAMETERS; at += tensor_count(x[0][i++])) assert_true(tensor_read(d, x[0][i], at, &err));
    plan_free(p);
    for (int k = 0; k < KINDS; k++) tensor_pool_free(pool[k]);
    tensor_pool_free(elsewhere);
    return out;
}

static void test_update(void **state) {
    (void)state;
    device *cpu = device_open("cpu", "fp32", 0, NULL), *d = open_device("fp32", false);
    if (!d) {
        device_close(cpu);
        skip();
    }
    for (int odd = -1; odd < PARAMETERS; odd += 14) {
        int records, on_cpu;
        size_t count;
        float *expected = run_update(cpu, odd, &on_cpu, &count), *got = run_update(d, odd, &records, &count);
        assert_int_equal(on_cpu, 2 * PARAMETERS + 1);
        /* One slab of each kind: a sum, the norm, an update; three updates where one parameter is apart, two where it is the first or last.
         */
        assert_int_equal(records, odd < 0 ? 3 : 5);
        assert_true(relative_error(got, expected, 1) < 1e-6);
        assert_true(relative_error(got + 1, expected + 1, count - 1) < 1e-6);
        free(expected);
        free(got);
    }
    device_close(d);
    device_close(cpu);
}

int main(void) {
    validation_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fp32), cmocka_unit_test(test_fp16), cmocka_unit_test(test_update)};
    return validation_end(cmocka_run_group_tests(tests, NULL, NULL));
}
