/* A LoRA in every spelling, applied module by module: outputs at two strengths and gradients, against PEFT
   (tests/reference/make_lora_fixtures.py). On the CPU and on the software Vulkan device; VULORA_TEST_GPU names another one. */
#define LORA TEST_DATA "/lora/"
#define REFERENCE LORA "reference.safetensors"

#include "tests/lora/module_run.h"
#include "tests/support/validation.h"

static void assert_close(const float *a, const float *b, size_t n, double tolerance, const char *what) {
    double relative = difference(a, b, n);
    if (!(relative <= tolerance)) fail_msg("%s: relative error %g", what, relative);
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

/* Weights by block multiply the strength; 0 leaves no trace. */
static void check_blocks(const char *key, adapter *a, adapter_stack *stack) {
    block_weights factors = {.given = true};
    for (int i = 0; i < BLOCK_WEIGHTS; i++) factors.of[i] = 0.6f;
    adapter_stack_set_blocks(stack, a, &factors);
    check_output(key, stack, "y06");
    for (int i = 0; i < BLOCK_WEIGHTS; i++) factors.of[i] = 0;
    adapter_stack_set_blocks(stack, a, &factors);
    run bare = run_record(key, NULL), zero = run_record(key, stack);
    assert_int_equal(tape_length(zero.tape), tape_length(bare.tape));
    tape_free(bare.tape);
    tape_free(zero.tape);
    run_free(&bare, NULL);
    run_free(&zero, NULL);
}

static void test_blocks(void **state) {
    (void)state;
    adapter_stack *stack = adapter_stack_create();
    adapter *a = load(LORA "kohya.safetensors", false, 9);
    adapter_stack_add(stack, a, 1, 1);
    assert_int_equal(for_each_module(a, check_blocks, stack), 9);
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
        cmocka_unit_test(test_outputs),  cmocka_unit_test(test_tucker), cmocka_unit_test(test_stack),
        cmocka_unit_test(test_no_trace), cmocka_unit_test(test_blocks), cmocka_unit_test(test_gradients),
    };
    validation_begin();
    int failed = 0;
    for (int i = 0; device_choose(i); i++) failed += cmocka_run_group_tests_name(device_name, tests, setup, teardown);
    return validation_end(failed);
}
