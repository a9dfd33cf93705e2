/* A LoRA in every spelling, applied module by module: outputs at two strengths and gradients, against PEFT
   (tests/reference/make_lora_fixtures.py). On the CPU and on the software Vulkan device; VULORA_TEST_GPU names another one. */
#include "formats/safetensors.h"
#include "graph/plan.h"
#include "lora/stack.h"
#include "tests/lora/memory_model.h"
#include "tests/support/validation.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define LORA TEST_DATA "/lora/"

static safetensors reference;
static checkpoint model;
static module_table *table;
static device *on; /* the CPU, then the Vulkan device */
static const char *device_name;
static float *blocks[64];
static int block_count;

static const float *reference_values(const safetensors_tensor *t) {
    float *values = safetensors_read_f32(&reference, t, NULL);
    blocks[block_count++] = values;
    return values;
}

static int setup(void **state) {
    (void)state;
    error err;
    if (!safetensors_open(&reference, LORA "reference.safetensors", &err)) return -1;
    for (size_t i = 0; i < reference.count; i++) {
        const safetensors_tensor *t = &reference.tensors[i];
        bool weight = strncmp(t->name, "weight/", 7) == 0;
        if (!weight && strncmp(t->name, "bias/", 5) != 0) continue;
        const char *path = strchr(t->name, '/') + 1;
        checkpoint_part part = strncmp(path, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
        char name[256];
        snprintf(name, sizeof name, "%s.%s", strchr(path, '/') + 1, weight ? "weight" : "bias");
        memory_model_add(&model, part, name, t->rank, t->dims, reference_values(t));
    }
    memory_model_finish(&model);
    table = module_table_create(&model, &err);
    on = device_open(device_name, "fp32", 1, &err);
    return table && on ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    module_table_free(table);
    memory_model_free(&model);
    for (int i = 0; i < block_count; i++) free(blocks[i]);
    block_count = 0;
    safetensors_close(&reference);
    device_close(on);
    return 0;
}

/* ---- One module ---- */

/* [n, c, h, w] to [n, h, w, c] (to_engine) or back; other ranks are copied. Freed by the caller. */
static float *channels_moved(const float *from, int rank, const int64_t *nchw, bool to_engine) {
    int64_t n = nchw[0], c = nchw[1], pixels = rank == 4 ? nchw[2] * nchw[3] : 1, count = n * c * pixels;
    if (rank == 3) count = nchw[0] * nchw[1] * nchw[2];
    float *to = memory_new((size_t)count, sizeof *to);
    if (rank != 4) {
        memcpy(to, from, (size_t)count * sizeof *to);
        return to;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < c; j++)
            for (int64_t p = 0; p < pixels; p++) {
                int64_t file = (i * c + j) * pixels + p, engine = (i * pixels + p) * c + j;
                if (to_engine)
                    to[engine] = from[file];
                else
                    to[file] = from[engine];
            }
    return to;
}

static float *read_moved(const char *what, const char *key, int64_t dims[4], int *rank) {
    char name[256];
    snprintf(name, sizeof name, "%s/%s", what, key);
    const safetensors_tensor *t = safetensors_find(&reference, name);
    assert_non_null(t);
    float *values = safetensors_read_f32(&reference, t, NULL);
    *rank = t->rank;
    memcpy(dims, t->dims, 4 * sizeof *dims);
    float *moved = channels_moved(values, t->rank, dims, true);
    if (t->rank == 4) {
        int64_t c = dims[1];
        dims[1] = dims[2];
        dims[2] = dims[3];
        dims[3] = c;
    }
    free(values);
    return moved;
}

static void assert_close(const float *a, const float *b, size_t n, double tolerance, const char *what) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    double relative = sqrt(difference / (size > 0 ? size : 1));
    if (!(relative <= tolerance)) fail_msg("%s: relative error %g", what, relative);
}

typedef struct run {
    weights *weights;
    tape *tape;
    tensor *x, *y, *target, *seed;
    float *x_values, *target_values;
} run;

static int stride_of(const char *path) { return strstr(path, "downsamplers") ? 2 : 1; }

/* Records the module `key` ("unet/down_blocks...") with the stack. */
static run run_record(const char *key, adapter_stack *stack) {
    run r = {0};
    checkpoint_part part = strncmp(key, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
    const char *path = strchr(key, '/') + 1;
    int64_t dims[4];
    int rank;
    r.weights = weights_open(&model, part, on);
    r.tape = tape_create(on);
    r.x_values = read_moved("x", key, dims, &rank);
    r.x = tape_input(r.tape, "x", DTYPE_F32, rank, dims);
    layer_scope scope = {.tape = r.tape, .weights = r.weights, .adapters = stack};
    r.y = rank == 4 ? layer_conv2d(&scope, r.x, NULL, NULL, stride_of(path), path) : layer_linear(&scope, r.x, NULL, path);
    if (r.y) tape_keep(r.y);
    r.target_values = read_moved("target", key, dims, &rank);
    r.target = tape_input(r.tape, "target", DTYPE_F32, rank, dims);
    return r;
}

static plan *run_plan(run *r) {
    error err;
    plan *p = plan_create(r->tape, &err);
    if (!p) fail_msg("%s", err.text);
    assert_true(tensor_write(on, r->x, r->x_values, &err));
    return p;
}

static void run_free(run *r, plan *p) {
    plan_free(p);
    weights_close(r->weights);
    free(r->x_values);
    free(r->target_values);
}

static void check_output(const char *key, adapter_stack *stack, const char *expected) {
    error err;
    run r = run_record(key, stack);
    plan *p = run_plan(&r);
    assert_true(plan_run(p, &err));
    int64_t dims[4];
    int rank;
    float *right = read_moved(expected, key, dims, &rank);
    float *got = memory_new((size_t)tensor_count(r.y), sizeof *got);
    assert_true(tensor_read(on, r.y, got, &err));
    assert_close(got, right, (size_t)tensor_count(r.y), 2e-6, key);
    free(right);
    free(got);
    run_free(&r, p);
}

/* Every module of the reference that the adapter has. Returns how many. */
static int for_each_module(adapter *a, void (*check)(const char *key, adapter *a, adapter_stack *stack), adapter_stack *stack) {
    int count = 0;
    for (size_t i = 0; i < reference.count; i++) {
        if (strncmp(reference.tensors[i].name, "weight/", 7) != 0) continue;
        const char *key = reference.tensors[i].name + 7;
        checkpoint_part part = strncmp(key, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
        if (!adapter_find_module(a, part, strchr(key, '/') + 1)) continue;
        check(key, a, stack);
        count++;
    }
    return count;
}

/* ---- Spellings ---- */

static const struct {
    const char *path;
    int modules;
} FILES[] = {
    {LORA "kohya.safetensors", 9}, {LORA "ldm.safetensors", 9},       {LORA "diffusers/pytorch_lora_weights.safetensors", 9},
    {LORA "diffusers", 9},         {LORA "processor.safetensors", 2}, {LORA "peft", 9},
    {LORA "peft/unet", 7},         {LORA "peft/text_encoder", 2},
};

static adapter *load(const char *path, bool trainable, int modules) {
    error err;
    adapter_report report;
    adapter *a = adapter_load(path, table, on, trainable, &report, &err);
    if (!a) fail_msg("%s", err.text);
    assert_int_equal(report.applied, modules);
    assert_int_equal(report.total, modules);
    assert_int_equal(report.unapplied_count, 0);
    adapter_report_free(&report);
    return a;
}

static void check_strengths(const char *key, adapter *a, adapter_stack *stack) {
    adapter_stack_set_weights(stack, a, 1, 1);
    check_output(key, stack, "y");
    adapter_stack_set_weights(stack, a, 0.6f, 0.6f);
    check_output(key, stack, "y06");
}

static void test_outputs(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        adapter_stack *stack = adapter_stack_create();
        adapter *a = load(FILES[i].path, false, FILES[i].modules);
        adapter_stack_add(stack, a, 1, 1);
        assert_int_equal(for_each_module(a, check_strengths, stack), FILES[i].modules);
        adapter_stack_free(stack);
    }
}

static void check_tucker(const char *key, adapter *a, adapter_stack *stack) {
    (void)a;
    check_output(key, stack, "y_tucker");
}

static void test_tucker(void **state) {
    (void)state;
    adapter_stack *stack = adapter_stack_create();
    adapter *a = load(LORA "tucker.safetensors", false, 2);
    adapter_stack_add(stack, a, 1, 1);
    assert_int_equal(for_each_module(a, check_tucker, stack), 2);
    adapter_stack_free(stack);
}

/* ---- Stacks ---- */

static void check_two(const char *key, adapter *a, adapter_stack *stack) {
    adapter *b = adapter_stack_at(stack, 1);
    adapter_stack_set_weights(stack, a, 0.75f, -0.5f);
    adapter_stack_set_weights(stack, b, -0.15f, 1.1f);
    check_output(key, stack, "y06");
    adapter_stack_set_weights(stack, a, 0, 0);
    adapter_stack_set_weights(stack, b, 1, 1);
    check_output(key, stack, "y");
}

static void test_stack(void **state) {
    (void)state;
    adapter_stack *stack = adapter_stack_create();
    adapter *a = load(LORA "kohya.safetensors", false, 9), *b = load(LORA "peft", false, 9);
    adapter_stack_add(stack, a, 1, 1);
    adapter_stack_add(stack, b, 1, 1);
    assert_int_equal(for_each_module(a, check_two, stack), 9);
    adapter_stack_remove(stack, a);
    assert_int_equal(adapter_stack_count(stack), 1);
    assert_ptr_equal(adapter_stack_at(stack, 0), b);
    assert_int_equal(for_each_module(b, check_strengths, stack), 9);
    adapter_stack_free(stack);
}

/* Weight 0 and no stack record the same tape. */
static void check_trace(const char *key, adapter *a, adapter_stack *stack) {
    run bare = run_record(key, NULL), zero, one;
    adapter_stack_set_weights(stack, a, 0, 0);
    zero = run_record(key, stack);
    adapter_stack_set_weights(stack, a, 1, 1);
    one = run_record(key, stack);
    assert_int_equal(tape_length(zero.tape), tape_length(bare.tape));
    assert_int_equal(tape_length(one.tape), tape_length(bare.tape) + 2);
    run *all[] = {&bare, &zero, &one};
    for (int i = 0; i < 3; i++) {
        tape_free(all[i]->tape);
        run_free(all[i], NULL);
    }
}

static void test_no_trace(void **state) {
    (void)state;
    adapter_stack *stack = adapter_stack_create();
    adapter *a = load(LORA "kohya.safetensors", false, 9);
    adapter_stack_add(stack, a, 1, 1);
    for_each_module(a, check_trace, stack);
    adapter_stack_free(stack);
}

/* ---- Gradients ---- */

static void check_gradient(const adapter_tensor *t, const char *what, const char *key) {
    char name[256];
    snprintf(name, sizeof name, "%s/%s", what, key);
    const safetensors_tensor *right = safetensors_find(&reference, name);
    assert_non_null(right);
    size_t n = right->elements;
    assert_int_equal(n, adapter_tensor_elements(t));
    float *engine = memory_new(n, sizeof *engine), *file = memory_new(n, sizeof *file);
    assert_true(tensor_read(on, t->value->grad, engine, NULL));
    adapter_tensor_to_file(t, engine, file);
    float *expected = safetensors_read_f32(&reference, right, NULL);
    assert_close(file, expected, n, 2e-5, name);
    free(engine);
    free(file);
    free(expected);
}

static void check_gradients(const char *key, adapter *a, adapter_stack *stack) {
    error err;
    run r = run_record(key, stack);
    tensor *loss = op_mse(r.tape, r.y, r.target);
    tensor *seed = tape_input(r.tape, "seed", DTYPE_F32, 1, (int64_t[]){1});
    tape_backward(r.tape, loss, seed, false);
    plan *p = run_plan(&r);
    assert_true(tensor_write(on, r.target, r.target_values, &err));
    assert_true(tensor_write(on, seed, (float[]){1}, &err));
    assert_true(plan_run(p, &err));
    checkpoint_part part = strncmp(key, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
    const adapter_module *m = adapter_find_module(a, part, strchr(key, '/') + 1);
    check_gradient(&m->tensors[0], "down_grad", key);
    check_gradient(&m->tensors[1], "up_grad", key);
    run_free(&r, p);
}

static void test_gradients(void **state) {
    (void)state;
    static const char *const paths[] = {LORA "kohya.safetensors", LORA "peft"};
    for (int i = 0; i < 2; i++) {
        adapter_stack *stack = adapter_stack_create();
        adapter *a = load(paths[i], true, 9);
        adapter_stack_add(stack, a, 1, 1);
        assert_int_equal(for_each_module(a, check_gradients, stack), 9);
        adapter_stack_free(stack);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs),  cmocka_unit_test(test_tucker),    cmocka_unit_test(test_stack),
        cmocka_unit_test(test_no_trace), cmocka_unit_test(test_gradients),
    };
    validation_begin();
    device_name = "cpu";
    int failed = cmocka_run_group_tests_name("cpu", tests, setup, teardown);
    device_name = getenv("VULORA_TEST_GPU") ? getenv("VULORA_TEST_GPU") : "llvmpipe";
    error err;
    device *vulkan = device_open(device_name, "fp32", 0, &err);
    device_close(vulkan);
    if (!vulkan) print_message("skipped on Vulkan: %s\n", err.text);
    if (vulkan) failed += cmocka_run_group_tests_name("vulkan", tests, setup, teardown);
    return validation_end(failed);
}
