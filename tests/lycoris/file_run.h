/* Adapter files of other programs, applied module by module and compared with what the program computed: outputs at three strengths and the
   gradients of all tensors. The test defines REFERENCE. Include once. */
#include "tests/lora/module_run.h"

static safetensors results;
static const char *file_name;
static double worst_output, worst_gradient;

/* The layer's output, as the program has it: 1 - strength of the bare layer's, strength of the adapted one's. */
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
    if (!right) fail_msg("%s: there is no %s", file_name, name);
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

static void run_file(const char *path, const char *results_path, const char *kind, int modules, bool trainable,
                     void (*check)(const char *key, adapter *a, adapter_stack *stack)) {
    error err;
    file_name = path;
    if (!safetensors_open(&results, results_path, &err)) fail_msg("%s", err.text);
    adapter_report report;
    adapter *a = adapter_load(path, table, on, trainable, &report, &err);
    if (!a) fail_msg("%s", err.text);
    assert_int_equal(report.applied, modules);
    assert_int_equal(report.unapplied_count, 0);
    for (int i = 0; i < a->module_count; i++) assert_string_equal(a->modules[i].kind->name, kind);
    adapter_report_free(&report);
    adapter_stack *stack = adapter_stack_create();
    adapter_stack_add(stack, a, 1, 1);
    assert_int_equal(for_each_module(a, check, stack), modules);
    adapter_stack_free(stack);
    safetensors_close(&results);
}
