/* Saved adapters: what comes back, metadata, sd-scripts' hashes, and what is never written. */
#include "lora/save.h"
#include "tests/lora/lora_place.h"

#include "base/random.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include <cmocka.h>

static adapter *create(const module_table *t, adapter_options o) {
    error err;
    adapter *a = adapter_create(&o, t, cpu, &err);
    if (!a) fail_msg("%s", err.text);
    return a;
}

/* A trained adapter with 3x3 convolutions and text encoder, random values in both matrices. */
static adapter *create_random(void) {
    adapter *a = create(
        table, (adapter_options){
                   .targets = "full", .rank = 3, .alpha = 1.5, .conv_rank = 2, .conv_alpha = 1, .train_text_encoder = true, .seed = 1});
    for (int i = 0; i < adapter_tensor_count(a); i++) {
        const adapter_tensor *t = adapter_tensor_at(a, i, NULL);
        int64_t n = adapter_tensor_elements(t);
        float *values = memory_new((size_t)n, sizeof *values);
        for (int64_t j = 0; j < n; j++) values[j] = (float)(random_uniform(9, (uint64_t)i, (uint64_t)j) * 4 - 2);
        assert_true(tensor_write(cpu, t->value, values, NULL));
        free(values);
    }
    return a;
}

static void save(const adapter *a, const char *path, dtype type) {
    static const safetensors_pair metadata[] = {{"ss_output_name", "me"}, {"modelspec.title", "me"}, {"ss_network_dim", "wrong"}};
    error err;
    adapter_save_options o = {.type = type, .metadata = metadata, .metadata_count = 3};
    if (!adapter_save(a, path, &o, &err)) fail_msg("%s", err.text);
}

/* ---- There and back ---- */

static void compare(const adapter *a, const adapter *b, dtype type) {
    assert_int_equal(adapter_tensor_count(a), adapter_tensor_count(b));
    for (int i = 0; i < adapter_tensor_count(a); i++) {
        const adapter_module *m, *l;
        const adapter_tensor *t = adapter_tensor_at(a, i, &m), *u = adapter_tensor_at(b, i, &l);
        assert_string_equal(t->name, u->name);
        assert_true(m->rank == l->rank && m->alpha == l->alpha && m->scale == l->scale);
        size_t n = (size_t)adapter_tensor_elements(t);
        float *x = memory_new(n, sizeof *x), *y = memory_new(n, sizeof *y);
        uint16_t *rounded = memory_new(n, sizeof(float));
        assert_true(tensor_read(cpu, t->value, x, NULL) && tensor_read(cpu, u->value, y, NULL));
        dtype_from_f32(rounded, type, x, n);
        dtype_to_f32(x, rounded, type, n);
        assert_memory_equal(x, y, n * sizeof *x);
        free(x);
        free(y);
        free(rounded);
    }
}

static void test_round_trip(void **state) {
    (void)state;
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    adapter *a = create_random();
    for (int i = 0; i < 6; i++) {
        error err;
        adapter_report report;
        save(a, in_folder("round.safetensors"), types[i % 3]);
        adapter *b = adapter_load(in_folder("round.safetensors"), table, cpu, i < 3, &report, &err);
        if (!b) fail_msg("%s", err.text);
        assert_int_equal(report.applied, 354);
        assert_int_equal(report.unapplied_count, 0);
        adapter_report_free(&report);
        compare(a, b, types[i % 3]);
        adapter_free(b);
    }
    adapter_free(a);
}

/* Shapes as sd-scripts and diffusers want them; one type for all; the header as webui reads it. */
static void test_file(void **state) {
    (void)state;
    error err;
    safetensors st;
    adapter *a = create_random();
    save(a, in_folder("file.safetensors"), DTYPE_F16);
    adapter_free(a);
    assert_true(safetensors_open(&st, in_folder("file.safetensors"), &err));
    assert_int_equal(st.count, 354 * 3);
    assert_memory_equal(st.map.data + 8, "{\"", 2);
    for (size_t i = 0; i < st.count; i++) {
        const safetensors_tensor *t = &st.tensors[i];
        assert_int_equal(t->type, DTYPE_F16);
        if (strstr(t->name, ".alpha")) {
            assert_int_equal(t->rank, 0);
            continue;
        }
        char flat[256];
        snprintf(flat, sizeof flat, "%.*s", (int)strcspn(t->name, "."), t->name);
        const module_info *m = module_table_find(table, flat);
        assert_non_null(m);
        assert_int_equal(t->rank, m->convolution ? 4 : 2);
        if (m->convolution) assert_int_equal(t->dims[2], strstr(t->name, "lora_down") ? m->kernel : 1);
    }
    assert_string_equal(safetensors_metadata(&st, "ss_network_module"), "networks.lora");
    assert_string_equal(safetensors_metadata(&st, "ss_network_dim"), "3");
    assert_string_equal(safetensors_metadata(&st, "ss_network_alpha"), "1.5");
    assert_string_equal(safetensors_metadata(&st, "ss_network_args"), "{\"conv_dim\": \"2\", \"conv_alpha\": \"1.0\"}");
    assert_string_equal(safetensors_metadata(&st, "ss_output_name"), "me");
    assert_string_equal(safetensors_metadata(&st, "modelspec.title"), "me");
    assert_int_equal(strlen(safetensors_metadata(&st, "sshs_model_hash")), 64);
    assert_string_equal(safetensors_metadata(&st, "sshs_legacy_hash"), "e3b0c442"); /* under 1 MiB: the hash of nothing */
    safetensors_close(&st);
}

/* The same adapter gives the same bytes. */
static void test_same_bytes(void **state) {
    (void)state;
    adapter *a = create_random(), *b = create_random();
    file_map x, y;
    save(a, in_folder("a.safetensors"), DTYPE_F16);
    save(b, in_folder("b.safetensors"), DTYPE_F16);
    assert_true(file_map_open(&x, in_folder("a.safetensors"), NULL) && file_map_open(&y, in_folder("b.safetensors"), NULL));
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    file_map_close(&x);
    file_map_close(&y);
    adapter_free(a);
    adapter_free(b);
}

/* ---- sd-scripts' hashes ---- */

/* As value() of tests/reference/make_lora_fixtures.py. */
static void fill(const adapter_tensor *t, int64_t tensor_index) {
    int64_t n = adapter_tensor_elements(t);
    float *values = memory_new((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = (float)((i * 37 + tensor_index * 101) % 251) / 256 - 0.5f;
    assert_true(tensor_write(cpu, t->value, values, NULL));
    free(values);
}

static void test_hashes(void **state) {
    (void)state;
    static const safetensors_pair metadata[] = {
        {"ss_output_name", "K\xc3\xa4the \"of\" \\ mine\n\t2"},
        {"ss_tag_frequency", "{\"10_k\\u00e4the\": {\"k\\u00e4the\": 3, \"a dog\": 1}}"},
        {"modelspec.title", "not in the hashed file"},
    };
    checkpoint c = {0};
    error err;
    for (int i = 0; i < 12; i++) {
        char name[128];
        snprintf(name, sizeof name, "down_blocks.0.attentions.0.transformer_blocks.0.attn%d.module_%d.weight", 1 + i / 6, i % 6);
        memory_model_add(&c, CHECKPOINT_UNET, name, 2, (int64_t[]){320, 320}, NULL);
    }
    memory_model_finish(&c);
    module_table *t = module_table_create(&c, NULL);
    adapter *a = create(t, (adapter_options){.targets = "full", .rank = 80, .alpha = 8});
    for (int i = 0; i < 12; i++) {
        fill(&a->modules[i].tensors[0], 2 * i);
        fill(&a->modules[i].tensors[1], 2 * i + 1);
    }
    adapter_save_options o = {.type = DTYPE_F16, .metadata = metadata, .metadata_count = 3};
    if (!adapter_save(a, in_folder("hash.safetensors"), &o, &err)) fail_msg("%s", err.text);
    safetensors st;
    assert_true(safetensors_open(&st, in_folder("hash.safetensors"), &err));
    char found[128];
    snprintf(found, sizeof found, "%s %s\n", safetensors_metadata(&st, "sshs_model_hash"), safetensors_metadata(&st, "sshs_legacy_hash"));
    char *expected = file_read_text(TEST_DATA "/lora/hashes.txt", 1000, &(size_t){0}, &err);
    assert_string_equal(found, expected);
    free(expected);
    safetensors_close(&st);
    adapter_free(a);
    module_table_free(t);
    memory_model_free(&c);
}

/* ---- What is never written ---- */

static void test_not_finite(void **state) {
    (void)state;
    static const struct {
        float value;
        dtype type;
    } cases[] = {{NAN, DTYPE_F32}, {INFINITY, DTYPE_BF16}, {-INFINITY, DTYPE_F16}, {70000.0f, DTYPE_F16}};
    adapter *a = create_random();
    save(a, in_folder("kept.safetensors"), DTYPE_F32);
    int files = folder_count(folder);
    const adapter_tensor *t = adapter_tensor_at(a, 17, NULL);
    float *values = memory_new((size_t)adapter_tensor_elements(t), sizeof *values);
    for (size_t i = 0; i < 4; i++) {
        error err = {0};
        values[1] = cases[i].value;
        assert_true(tensor_write(cpu, t->value, values, NULL));
        assert_false(adapter_save(a, in_folder("kept.safetensors"), &(adapter_save_options){.type = cases[i].type}, &err));
        assert_non_null(strstr(err.text, "kept.safetensors"));
        assert_non_null(strstr(err.text, t->name));
        assert_int_equal(folder_count(folder), files);
    }
    adapter *b = adapter_load(in_folder("kept.safetensors"), table, cpu, false, NULL, NULL);
    assert_non_null(b); /* what stood there before */
    free(values);
    adapter_free(a);
    adapter_free(b);
}

static void test_no_place(void **state) {
    (void)state;
    adapter *a = create_random();
    const char *places[] = {"missing/x.safetensors", "", "taken"};
    assert_int_equal(mkdir(in_folder("taken"), 0700), 0);
    for (int i = 0; i < 3; i++) {
        error err = {0};
        assert_false(adapter_save(a, in_folder(places[i]), &(adapter_save_options){.type = DTYPE_F16}, &err));
        assert_non_null(strstr(err.text, folder));
    }
    adapter_free(a);
}

/* ---- Numbers ---- */

static void test_numbers(void **state) {
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {{8, "8.0"},
                 {0, "0.0"},
                 {0.5, "0.5"},
                 {1.5, "1.5"},
                 {0.0001, "0.0001"},
                 {0.00001, "1e-05"},
                 {2.5e-7, "2.5e-07"},
                 {1e16, "1e+16"},
                 {123456, "123456.0"},
                 {-0.1, "-0.1"},
                 {0.1 + 0.2, "0.30000000000000004"},
                 {1e-4 / 3, "3.3333333333333335e-05"},
                 {(double)NAN, "nan"},
                 {(double)INFINITY, "inf"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        metadata_number(cases[i].value, text);
        assert_string_equal(text, cases[i].text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_file),       cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_hashes),     cmocka_unit_test(test_not_finite), cmocka_unit_test(test_no_place),
        cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests(tests, lora_place_open, lora_place_close);
}
