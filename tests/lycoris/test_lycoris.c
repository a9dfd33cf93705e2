/* Adapters of every kind that LyCORIS makes, applied module by module: outputs at two strengths and the gradients of all their tensors,
   against LyCORIS itself (tests/reference/make_lycoris_fixtures.py). On the CPU and on the software Vulkan device; VULORA_TEST_GPU names
   another one. */
#define LYCORIS TEST_DATA "/lycoris/"
#define REFERENCE LYCORIS "reference.safetensors"

#include "lora/save.h"
#include "tests/lora/module_run.h"
#include "tests/support/validation.h"

static const struct {
    const char *file, *kind;
    int modules;
} FILES[] = {
    {"locon", "lora", 7},
    {"locon_tucker", "lora", 3},
    {"locon_rs", "lora", 4},
    {"dora_input", "lora", 7},
    {"dora_output", "lora", 7},
    {"loha", "loha", 7},
    {"loha_large", "loha", 7},
    {"loha_tucker", "loha", 3},
    {"loha_dora", "loha", 7},
    {"loha_tucker_dora", "loha", 3},
    {"lokr_full", "lokr", 7},
    {"lokr", "lokr", 7},
    {"lokr_both", "lokr", 7},
    {"lokr_tucker", "lokr", 3},
    {"lokr_dora", "lokr", 7},
    {"lokr_tucker_dora", "lokr", 3},
    {"ia3", "ia3", 7},
    {"ia3_input", "ia3", 7},
    {"glora", "glora", 5},
    {"oft", "oft", 7},
    {"oft_constraint", "oft", 7},
    {"oft_rescaled", "oft", 7},
    {"boft", "boft", 7},
    {"boft_constraint", "boft", 7},
    {"full", "full", 7},
    {"norm", "norm", 2},
};

static safetensors results;
static const char *file_name;
static double worst_output, worst_gradient;

/* The layer's output, as LyCORIS has it: 1 - strength of the bare layer's, strength of the adapted one's. */
static void check_output(const char *key, adapter_stack *stack, float strength) {
    error err;
    run r = run_record(key, stack);
    if (!r.y) fail_msg("%s: %s", file_name, tape_error(r.tape));
    plan *p = run_plan(&r);
    assert_true(plan_run(p, &err));
    char name[256];
    snprintf(name, sizeof name, "y/%s", key);
    const safetensors_tensor *adapted = safetensors_find(&results, name), *bare = safetensors_find(&reference, name);
    float *right = safetensors_read_f32(&results, adapted, NULL), *base = safetensors_read_f32(&reference, bare, NULL);
    for (size_t i = 0; i < adapted->elements; i++) right[i] = strength * right[i] + (1 - strength) * base[i];
    float *moved = channels_moved(right, adapted->rank, adapted->dims, true), *got = memory_new(adapted->elements, sizeof *got);
    assert_true(tensor_read(on, r.y, got, &err));
    double e = difference(got, moved, adapted->elements);
    if (!(e <= 5e-6)) fail_msg("%s: %s at %g: relative error %g", file_name, key, (double)strength, e);
    worst_output = e > worst_output ? e : worst_output;
    free(right);
    free(base);
    free(moved);
    free(got);
    run_free(&r, p);
}

static void check_outputs(const char *key, adapter *a, adapter_stack *stack) {
    static const float strengths[] = {1, 0.6f, -0.5f};
    for (int i = 0; i < 3; i++) {
        adapter_stack_set_weights(stack, a, strengths[i], strengths[i]);
        check_output(key, stack, strengths[i]);
    }
}

static void check_gradient(const adapter_tensor *t) {
    char name[256];
    snprintf(name, sizeof name, "grad/%s", t->name);
    const safetensors_tensor *right = safetensors_find(&results, name);
    if (!right) fail_msg("%s: LyCORIS has no %s", file_name, name);
    size_t n = right->elements;
    assert_int_equal(n, adapter_tensor_elements(t));
    float *engine = memory_new(n, sizeof *engine), *file = memory_new(n, sizeof *file);
    assert_true(tensor_read(on, t->value->grad, engine, NULL));
    adapter_tensor_to_file(t, engine, file);
    float *expected = safetensors_read_f32(&results, right, NULL);
    double e = difference(file, expected, n);
    if (!(e <= 5e-5)) fail_msg("%s: gradient of %s: relative error %g", file_name, t->name, e);
    worst_gradient = e > worst_gradient ? e : worst_gradient;
    free(engine);
    free(file);
    free(expected);
}

static void check_gradients(const char *key, adapter *a, adapter_stack *stack) {
    error err;
    run r = run_record(key, stack);
    tensor *loss = op_mse(r.tape, r.y, r.target), *seed = tape_input(r.tape, "seed", DTYPE_F32, 1, (int64_t[]){1});
    tape_backward(r.tape, loss, seed, false);
    plan *p = run_plan(&r);
    assert_true(tensor_write(on, r.target, r.target_values, &err));
    assert_true(tensor_write(on, seed, (float[]){1}, &err));
    assert_true(plan_run(p, &err));
    checkpoint_part part = strncmp(key, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
    const adapter_module *m = adapter_find_module(a, part, strchr(key, '/') + 1);
    for (int i = 0; i < ADAPTER_MODULE_TENSORS; i++)
        if (m->tensors[i].value) check_gradient(&m->tensors[i]);
    run_free(&r, p);
}

static void run_file(int index, bool trainable, void (*check)(const char *key, adapter *a, adapter_stack *stack)) {
    error err;
    char path[512];
    file_name = FILES[index].file;
    snprintf(path, sizeof path, LYCORIS "%s_results.safetensors", file_name);
    if (!safetensors_open(&results, path, &err)) fail_msg("%s", err.text);
    snprintf(path, sizeof path, LYCORIS "%s.safetensors", file_name);
    adapter_report report;
    adapter *a = adapter_load(path, table, on, trainable, &report, &err);
    if (!a) fail_msg("%s", err.text);
    assert_int_equal(report.applied, FILES[index].modules);
    assert_int_equal(report.unapplied_count, 0);
    for (int i = 0; i < a->module_count; i++) assert_string_equal(a->modules[i].kind->name, FILES[index].kind);
    adapter_report_free(&report);
    adapter_stack *stack = adapter_stack_create();
    adapter_stack_add(stack, a, 1, 1);
    assert_int_equal(for_each_module(a, check, stack), FILES[index].modules);
    adapter_stack_free(stack);
    safetensors_close(&results);
}

enum { FILE_COUNT = sizeof FILES / sizeof *FILES };

static void test_outputs(void **state) {
    (void)state;
    for (int i = 0; i < FILE_COUNT; i++) run_file(i, false, check_outputs);
    print_message("worst output %.1e\n", worst_output);
}

static void test_gradients(void **state) {
    (void)state;
    for (int i = 0; i < FILE_COUNT; i++)
        if (strcmp(FILES[i].kind, "norm") != 0) run_file(i, true, check_gradients);
    print_message("worst gradient %.1e\n", worst_gradient);
}

/* Saved again, a file has the same tensors in the same shapes, which other programs count on. GLoRA's are renamed, alphas may be told
   another way. */
static void test_saved_again(void **state) {
    (void)state;
    for (int i = 0; i < FILE_COUNT; i++) {
        error err;
        char path[512], copy[512];
        if (strcmp(FILES[i].kind, "glora") == 0) continue;
        snprintf(path, sizeof path, LYCORIS "%s.safetensors", FILES[i].file);
        snprintf(copy, sizeof copy, "test_lycoris_%s.safetensors", FILES[i].file);
        adapter *a = adapter_load(path, table, on, false, NULL, &err);
        assert_non_null(a);
        if (!adapter_save(a, copy, &(adapter_save_options){.type = DTYPE_F32}, &err)) fail_msg("%s", err.text);
        safetensors before, after;
        assert_true(safetensors_open(&before, path, &err) && safetensors_open(&after, copy, &err));
        assert_int_equal(before.count, after.count);
        for (size_t k = 0; k < before.count; k++) {
            const safetensors_tensor *t = &before.tensors[k], *u = safetensors_find(&after, t->name);
            if (!u || u->rank != t->rank || memcmp(u->dims, t->dims, (size_t)t->rank * sizeof *t->dims) != 0)
                fail_msg("%s: %s is gone, or of another shape", FILES[i].file, t->name);
            if (t->rank == 0) continue;
            float *x = safetensors_read_f32(&before, t, NULL), *y = safetensors_read_f32(&after, u, NULL);
            assert_memory_equal(x, y, t->elements * sizeof *x);
            free(x);
            free(y);
        }
        safetensors_close(&before);
        safetensors_close(&after);
        remove(copy);
        adapter_free(a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_outputs), cmocka_unit_test(test_gradients),
                                       cmocka_unit_test(test_saved_again)};
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
