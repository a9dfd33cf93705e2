/* What only Vulkan meets: fp32 inputs from outside, latents and text states, beside activations stored as fp16. The first operations of
   the models against the CPU, output and the gradients of trained weights, with fp32 and fp16 storage. Everything else about operations
   is in test_ops.c. VULORA_TEST_GPU names another device than lavapipe. */
#include "graph/plan.h"
#include "ops/ops.h"
#include "tests/support/validation.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "case_file.h"

typedef enum role { NONE, HOST, TRAINED, VECTOR } role;

enum { MOST_INPUTS = 3, MOST_RESULTS = 1 + MOST_INPUTS };

typedef struct test_case {
    const char *name;
    struct {
        role role;
        int rank;
        int64_t dim[4];
    } in[MOST_INPUTS];
    tensor *(*build)(tape *t, tensor *const *in);
} test_case;

static tensor *linear(tape *t, tensor *const *in) { return op_linear(t, in[0], in[1], in[2], NULL, 1); }
static tensor *conv(tape *t, tensor *const *in) {
    return op_conv2d(t, in[0], in[1], in[2], NULL, NULL, (conv_shape){.kernel = 3, .stride = 1, .pad_before = 1, .pad_after = 1});
}
static tensor *group_norm(tape *t, tensor *const *in) {
    return op_linear(t, op_group_norm(t, in[0], in[1], in[1], 4, 1e-5f, true), in[2], NULL, NULL, 1);
}
static tensor *attention(tape *t, tensor *const *in) {
    return op_linear(t, op_attention(t, in[0], in[1], in[1], 2, false), in[2], NULL, NULL, 1);
}

static const test_case cases[] = {
    {"linear", {{HOST, 3, {2, 77, 48}}, {TRAINED, 2, {8, 48}}, {VECTOR, 1, {8}}}, linear},
    {"linear, odd", {{HOST, 3, {1, 33, 19}}, {TRAINED, 2, {7, 19}}, {VECTOR, 1, {7}}}, linear},
    {"conv2d", {{HOST, 4, {2, 8, 9, 4}}, {TRAINED, 3, {9, 32, 4}}, {VECTOR, 1, {32}}}, conv},
    {"group_norm", {{HOST, 4, {1, 4, 4, 16}}, {VECTOR, 1, {16}}, {TRAINED, 2, {8, 16}}}, group_norm},
    {"attention", {{HOST, 3, {1, 20, 32}}, {HOST, 3, {1, 30, 32}}, {TRAINED, 2, {8, 32}}}, attention},
};

typedef struct results {
    int count;
    size_t size[MOST_RESULTS];
    float *values[MOST_RESULTS]; /* output, gradients in the order of the inputs */
} results;

static void check(bool ok, const char *name, const error *err) {
    if (!ok) fail_msg("%s: %s", name, err->text);
}

static void write_values(device *d, tensor *x, uint64_t stream, const char *name) {
    error err;
    float *values = case_values(stream, (size_t)tensor_count(x), 1, 0);
    check(tensor_write(d, x, values, &err), name, &err);
    free(values);
}

static void read_values(device *d, const tensor *x, results *out, const char *name) {
    error err;
    out->size[out->count] = (size_t)tensor_count(x);
    float *values = out->values[out->count] = memory_new(out->size[out->count], sizeof *values);
    out->count++;
    check(tensor_read(d, x, values, &err), name, &err);
}

static results run_case(device *d, const test_case *c) {
    error err;
    tape *t = tape_create(d);
    tensor_pool *pool = tensor_pool_create(d);
    tensor *in[MOST_INPUTS] = {0};
    results out = {0};
    for (int i = 0; i < MOST_INPUTS; i++) {
        const int rank = c->in[i].rank;
        const int64_t *dim = c->in[i].dim;
        if (c->in[i].role == HOST) {
            in[i] = tape_input(t, "input", DTYPE_F32, rank, dim);
            continue;
        }
        in[i] = tensor_pool_parameter(pool, "parameter", rank, dim, &err);
        write_values(d, in[i], (uint64_t)i + 1, c->name);
        if (c->in[i].role != TRAINED) continue;
        in[i]->grad = tensor_pool_parameter(pool, "gradient", rank, dim, &err);
        in[i]->needs_grad = true;
    }
    tensor *y = c->build(t, in);
    if (!y) fail_msg("%s: %s", c->name, tape_error(t));
    tensor *target = tape_input(t, "target", DTYPE_F32, y->rank, y->dim), *seed = tape_input(t, "seed", DTYPE_F32, 1, (int64_t[]){1});
    tape_keep(y);
    tape_backward(t, op_mse(t, y, target), seed, false);
    plan *p = plan_create(t, &err);
    check(p != NULL, c->name, &err);
    for (int i = 0; i < MOST_INPUTS; i++)
        if (c->in[i].role == HOST) write_values(d, in[i], (uint64_t)i + 1, c->name);
    write_values(d, target, 9, c->name);
    check(tensor_write(d, seed, (float[]){(float)tensor_count(target)}, &err) && plan_run(p, &err), c->name, &err);
    read_values(d, y, &out, c->name);
    for (int i = 0; i < MOST_INPUTS; i++)
        if (c->in[i].role == TRAINED) read_values(d, in[i]->grad, &out, c->name);
    plan_free(p);
    tensor_pool_free(pool);
    return out;
}

static void compare(const char *precision, double most) {
    error err;
    const char *name = getenv("VULORA_TEST_GPU");
    device *vulkan = device_open(name ? name : "llvmpipe", precision, 0, &err), *cpu = device_open("cpu", "fp32", 0, NULL);
    if (!vulkan) {
        print_message("skipped: %s\n", err.text);
        device_close(cpu);
        skip();
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        results expected = run_case(cpu, &cases[i]), got = run_case(vulkan, &cases[i]);
        for (int k = 0; k < got.count; k++) {
            double e = relative_error(got.values[k], expected.values[k], got.size[k]);
            if (!(e <= most)) fail_msg("%s, result %d: error %g, more than %g", cases[i].name, k, e, most);
            free(expected.values[k]);
            free(got.values[k]);
        }
    }
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

int main(void) {
    validation_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fp32), cmocka_unit_test(test_fp16)};
    return validation_end(cmocka_run_group_tests(tests, NULL, NULL));
}
