/* Adapters of every kind that LyCORIS makes, applied module by module: outputs at two strengths and the gradients of all their tensors,
   against LyCORIS itself (tests/reference/make_lycoris_fixtures.py). On the CPU and on the software Vulkan device; VULORA_TEST_GPU names
   another one. */
#define LYCORIS TEST_DATA "/lycoris/"
#define REFERENCE LYCORIS "reference.safetensors"

#include "lora/save.h"
#include "tests/lycoris/file_run.h"
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
    {"norm", "norm", 3},
};

enum { FILE_COUNT = sizeof FILES / sizeof *FILES };

static void run_row(int index, bool trainable, void (*check)(const char *key, adapter *a, adapter_stack *stack)) {
    char path[512], results_path[512];
    snprintf(path, sizeof path, LYCORIS "%s.safetensors", FILES[index].file);
    snprintf(results_path, sizeof results_path, LYCORIS "%s_results.safetensors", FILES[index].file);
    run_file(path, results_path, FILES[index].kind, FILES[index].modules, trainable, check);
}

static void test_outputs(void **state) {
    (void)state;
    for (int i = 0; i < FILE_COUNT; i++) run_row(i, false, check_outputs);
    print_message("worst output %.1e\n", worst_output);
}

static void test_gradients(void **state) {
    (void)state;
    for (int i = 0; i < FILE_COUNT; i++) run_row(i, true, check_gradients);
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
    int failed = 0;
    for (int i = 0; device_choose(i); i++) failed += cmocka_run_group_tests_name(device_name, tests, setup, teardown);
    return validation_end(failed);
}
