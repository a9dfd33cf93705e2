/* Adapters as other programs store them: PEFT's folders, OneTrainer's and kohya's OFT, residuals beside factors. Outputs at three
   strengths, and gradients where such files are trained further, against those programs (tests/reference/make_peft_fixtures.py). On the CPU
   and on the software Vulkan device; VULORA_TEST_GPU names another one. */
#define FOREIGN TEST_DATA "/foreign/"
#define REFERENCE TEST_DATA "/lycoris/reference.safetensors"

#include "lora/save.h"
#include "tests/lycoris/file_run.h"
#include "tests/support/validation.h"

static const struct {
    const char *file, *kind;
    int modules;
    bool gradients;
} FILES[] = {
    {"lora_dora", "lora", 6, false},
    {"lora_rs", "lora", 6, true},
    {"loha", "loha", 6, true},
    {"loha_effective", "loha", 2, true},
    {"loha_text", "loha", 1, false},
    {"lokr", "lokr", 6, true},
    {"lokr_full", "lokr", 6, true},
    {"lokr_both", "lokr", 6, true},
    {"lokr_effective", "lokr", 2, true},
    {"ia3", "ia3", 6, false},
    {"ia3_plain", "ia3", 3, true},
    {"oft", "oft", 4, false},
    {"oft_exact", "oft", 4, false},
    {"oft_terms", "oft", 4, false},
    {"oft_shared", "oft", 4, false},
    {"oft_constrained", "oft", 4, false},
    {"boft", "boft", 6, false},
    {"boft_butterfly", "boft", 6, false},
    {"onetrainer_oft.safetensors", "oft", 6, false},
    {"onetrainer_shared.safetensors", "oft", 6, false},
    {"onetrainer_scaled.safetensors", "oft", 6, false},
    {"onetrainer_loha.safetensors", "loha", 6, false},
    {"kohya_oft.safetensors", "oft", 6, true},
    {"kohya_constrained.safetensors", "oft", 6, true},
    {"sparse.safetensors", "lora", 6, false},
    {"dense.safetensors", "lora", 6, false},
    {"sparse_dora.safetensors", "lora", 6, false},
};

enum { FILE_COUNT = sizeof FILES / sizeof *FILES };

static void run_row(int index, bool trainable, void (*check)(const char *key, adapter *a, adapter_stack *stack)) {
    char path[512], results_path[512];
    const char *file = FILES[index].file, *dot = strchr(file, '.');
    snprintf(path, sizeof path, FOREIGN "%s", file);
    snprintf(results_path, sizeof results_path, FOREIGN "%.*s_results.safetensors", dot ? (int)(dot - file) : (int)strlen(file), file);
    run_file(path, results_path, FILES[index].kind, FILES[index].modules, trainable, check);
}

static void test_outputs(void **state) {
    (void)state;
    for (int i = 0; i < FILE_COUNT; i++) run_row(i, false, check_outputs);
    print_message("worst output %.1e\n", worst_output);
}

static void test_gradients(void **state) {
    (void)state;
    for (int i = 0; i < FILE_COUNT; i++)
        if (FILES[i].gradients) run_row(i, true, check_gradients);
    print_message("worst gradient %.1e\n", worst_gradient);
}

/* What was read in another program's way and saved in kohya's does the same. */
static void test_saved_again(void **state) {
    (void)state;
    static const char *const names[] = {"lora_rs", "loha", "lokr_full", "lokr_both", "ia3_plain", "sparse.safetensors", "lora_dora"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        error err;
        char path[512], results_path[512], copy[] = "test_foreign_copy.safetensors";
        int row = 0;
        while (strcmp(FILES[row].file, names[i]) != 0) row++;
        snprintf(path, sizeof path, FOREIGN "%s", names[i]);
        snprintf(results_path, sizeof results_path, FOREIGN "%.*s_results.safetensors", (int)strcspn(names[i], "."), names[i]);
        adapter *a = adapter_load(path, table, on, false, NULL, &err);
        assert_non_null(a);
        if (!adapter_save(a, copy, &(adapter_save_options){.type = DTYPE_F32}, &err)) fail_msg("%s: %s", names[i], err.text);
        adapter_free(a);
        run_file(copy, results_path, FILES[row].kind, FILES[row].modules, false, check_outputs);
        remove(copy);
    }
}

/* Kinds that files of ours cannot say are neither saved nor trained further, and nothing below a turned convolution is forgotten. */
static void test_refused(void **state) {
    (void)state;
    static const char *const names[] = {"oft", "boft", "ia3", "onetrainer_oft.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        error err;
        char path[512];
        snprintf(path, sizeof path, FOREIGN "%s", names[i]);
        assert_null(adapter_load(path, table, on, true, NULL, &err));
        assert_non_null(strstr(err.text, "not trained further"));
        adapter *a = adapter_load(path, table, on, false, NULL, &err);
        assert_non_null(a);
        assert_false(adapter_save(a, "test_foreign_copy.safetensors", &(adapter_save_options){.type = DTYPE_F32}, &err));
        assert_non_null(strstr(err.text, "cannot be saved"));
        adapter_free(a);
    }
    adapter_stack *stack = adapter_stack_create();
    adapter_stack_add(stack, adapter_load(FOREIGN "loha", table, on, false, NULL, NULL), 1, 1);
    adapter_stack_add(stack, adapter_load(FOREIGN "onetrainer_oft.safetensors", table, on, false, NULL, NULL), 1, 1);
    run r = run_record("unet/down_blocks.0.resnets.0.conv1", stack);
    assert_null(r.y);
    assert_non_null(strstr(tape_error(r.tape), "before the other adapters"));
    tape_free(r.tape);
    run_free(&r, NULL);
    adapter_stack_free(stack);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_outputs), cmocka_unit_test(test_gradients), cmocka_unit_test(test_saved_again),
                                       cmocka_unit_test(test_refused)};
    validation_begin();
    int failed = 0;
    for (int i = 0; device_choose(i); i++) failed += cmocka_run_group_tests_name(device_name, tests, setup, teardown);
    return validation_end(failed);
}
