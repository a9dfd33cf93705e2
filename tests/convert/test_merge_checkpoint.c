/* Adapters merged into a model: layers one after another, everything else byte for byte; what is refused. */
#include "convert/extract.h"
#include "convert/merge_checkpoint.h"
#include "edited_model.h"

static const char QUERY[] = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
static const char NORM[] = "lora_unet_down_blocks_0_resnets_0_norm1";
static const char CONV[] = "lora_unet_down_blocks_0_downsamplers_0_conv";
static const char TEXT[] = "lora_te_text_model_encoder_layers_1_self_attn_q_proj";

static device *cpu;

/* ---- Adapter files ---- */

typedef struct part {
    const char *module, *name;
    int rank;
    int64_t dims[4];
    float *values;
} part;

static void adapter_write(const char *name, part *parts, size_t count) {
    safetensors_writer w = {0};
    error err;
    for (size_t i = 0; i < count; i++) {
        char *full = memory_format("%s.%s", parts[i].module, parts[i].name);
        if (!safetensors_writer_add_f32(&w, full, DTYPE_F32, parts[i].rank, parts[i].dims, parts[i].values, &err)) fail_msg("%s", err.text);
        free(full);
    }
    finish(&w, in_folder(name), NULL, 0);
}

/* LoRA of rank 1 and alpha 1: everything grows by 2 * column, then rows of (IA)^3 and differences with biases. */
static float up[TINY_UNET_CHANNELS], down[TINY_UNET_CHANNELS], rows[TINY_UNET_CHANNELS], shift[TINY_UNET_CHANNELS], one[] = {1},
                                                                                                                    zero[] = {0};

static void write_adapters(void) {
    enum { N = TINY_UNET_CHANNELS };
    for (int i = 0; i < N; i++) {
        up[i] = 0.1f * (float)(i - 3);
        down[i] = 0.02f * (float)i;
        rows[i] = 0.05f * (float)(i - 10);
        shift[i] = 0.3f * (float)i;
    }
    part lora[] = {{QUERY, "lora_up.weight", 2, {N, 1}, up}, {QUERY, "lora_down.weight", 2, {1, N}, down}, {QUERY, "alpha", 0, {0}, one}};
    part ia3[] = {{QUERY, "weight", 2, {N, 1}, rows}, {QUERY, "on_input", 0, {0}, zero}};
    const module_info *conv = module_at(CONV), *text = module_at(TEXT);
    float *kernel = noise_of(conv->weight->elements, 3, 0.1f), *matrix = noise_of(text->weight->elements, 4, 0.1f);
    part full[] = {{CONV, "diff", 4, {conv->out, conv->in, 3, 3}, kernel},
                   {CONV, "diff_b", 1, {N}, shift},
                   {TEXT, "diff", 2, {text->out, text->in}, matrix},
                   {NORM, "w_norm", 1, {N}, rows},
                   {NORM, "b_norm", 1, {N}, shift}};
    adapter_write("lora.safetensors", lora, LENGTH(lora));
    adapter_write("ia3.safetensors", ia3, LENGTH(ia3));
    adapter_write("full.safetensors", full, LENGTH(full));
    free(kernel);
    free(matrix);
}

/* ---- Merging ---- */

typedef struct layer_text {
    const char *file;
    float unet_weight, text_weight;
} layer_text;

static bool merge(const char *into, const char *out, const layer_text *texts, int count, int *changed, error *err) {
    checkpoint model;
    merge_layer layers[4];
    merge_options o = {0};
    if (!checkpoint_open(&model, in_folder(into), NULL, err)) fail_msg("%s", err->text);
    module_table *modules = module_table_create(&model, err);
    for (int i = 0; i < count; i++) {
        adapter *a = adapter_load(in_folder(texts[i].file), modules, cpu, false, NULL, err);
        if (!a) fail_msg("%s", err->text);
        layers[i] = (merge_layer){a, {.unet_weight = texts[i].unet_weight, .text_weight = texts[i].text_weight}};
    }
    bool ok = merge_into_checkpoint(&model, modules, layers, count, in_folder(out), &o, changed, err);
    for (int i = 0; i < count; i++) adapter_free((adapter *)(uintptr_t)layers[i].adapter);
    module_table_free(modules);
    checkpoint_close(&model);
    return ok;
}

/* Everything but `names` is as it was; a tensor of `names` is in *changed[i], freed by the caller. */
static void compare(const char *before, const char *after, const char *const *names, int count, float **changed) {
    error err;
    safetensors a, b;
    if (!safetensors_open(&a, in_folder(before), &err) || !safetensors_open(&b, in_folder(after), &err)) fail_msg("%s", err.text);
    assert_int_equal(a.count, b.count);
    for (size_t i = 0; i < a.count; i++) {
        const safetensors_tensor *t = &a.tensors[i], *u = safetensors_find(&b, t->name);
        int which = 0;
        while (which < count && strcmp(names[which], t->name) != 0) which++;
        assert_true(u && u->type == t->type && u->rank == t->rank && u->bytes == t->bytes && !memcmp(t->dims, u->dims, sizeof t->dims));
        if (which < count)
            changed[which] = safetensors_read_f32(&b, u, NULL);
        else if (memcmp(t->data, u->data, t->bytes))
            fail_msg("%s is another one", t->name);
    }
    assert_string_equal(safetensors_metadata(&b, "modelspec.title"), "a model");
    assert_null(safetensors_metadata(&b, "sshs_model_hash"));
    safetensors_close(&a);
    safetensors_close(&b);
}

static const char *stored_bias(const char *flat) {
    char *name = memory_format("%s.bias", module_at(flat)->name);
    const checkpoint_tensor *t = checkpoint_find(&base, CHECKPOINT_UNET, name);
    free(name);
    assert_non_null(t);
    return t->stored;
}

/* (IA)^3 scales what the LoRA before it left; strengths are linear in both. */
static void test_order(void **state) {
    (void)state;
    static const float a = 0.7f, b = -1.3f;
    const layer_text forward[] = {{"lora.safetensors", a, 9}, {"ia3.safetensors", b, 9}}, backward[] = {forward[1], forward[0]};
    const checkpoint_tensor *w = module_at(QUERY)->weight;
    const float *before = w->data;
    model_write(in_folder("model.safetensors"), DTYPE_F32, NULL, 0);
    for (int turned = 0; turned < 2; turned++) {
        error err;
        int count;
        float *after = NULL;
        if (!merge("model.safetensors", "merged.safetensors", turned ? backward : forward, 2, &count, &err)) fail_msg("%s", err.text);
        assert_int_equal(count, 1);
        compare("model.safetensors", "merged.safetensors", &w->stored, 1, &after);
        for (int o = 0; o < TINY_UNET_CHANNELS; o++)
            for (int i = 0; i < TINY_UNET_CHANNELS; i++) {
                float grown = a * up[o] * down[i], factor = 1 + b * rows[o], old = before[o * TINY_UNET_CHANNELS + i];
                float expected = turned ? old * factor + grown : (old + grown) * factor;
                assert_true(fabsf(after[o * TINY_UNET_CHANNELS + i] - expected) <= 1e-6f * (1 + fabsf(expected)));
            }
        free(after);
    }
}

/* Differences: biases and norms too, the text encoder with a strength of its own, in each type of models. */
static void test_full(void **state) {
    (void)state;
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    static const double allowed[] = {1e-7, 6e-4, 5e-3};
    const layer_text layers[] = {{"full.safetensors", 0.5f, 2}};
    const char *names[] = {module_at(CONV)->weight->stored, stored_bias(CONV), module_at(TEXT)->weight->stored,
                           module_at(NORM)->weight->stored, stored_bias(NORM)};
    float *kernel = noise_of(module_at(CONV)->weight->elements, 3, 0.1f), *matrix = noise_of(module_at(TEXT)->weight->elements, 4, 0.1f);
    const float *added[] = {kernel, shift, matrix, rows, shift};
    for (size_t t = 0; t < LENGTH(types); t++) {
        error err;
        int count;
        float *after[5] = {NULL};
        safetensors st;
        model_write(in_folder("model.safetensors"), types[t], NULL, 0);
        if (!merge("model.safetensors", "merged.safetensors", layers, 1, &count, &err)) fail_msg("%s", err.text);
        assert_int_equal(count, 5);
        compare("model.safetensors", "merged.safetensors", names, 5, after);
        assert_true(safetensors_open(&st, in_folder("model.safetensors"), NULL));
        for (int k = 0; k < 5; k++) {
            const safetensors_tensor *stored = safetensors_find(&st, names[k]);
            float *before = safetensors_read_f32(&st, stored, NULL);
            for (size_t i = 0; i < stored->elements; i++) {
                double expected = (double)before[i] + (k == 2 ? 2 : 0.5) * (double)added[k][i];
                assert_true(fabs((double)after[k][i] - expected) <= allowed[t] * fabs(expected) + 1e-7);
            }
            free(before);
            free(after[k]);
        }
        safetensors_close(&st);
    }
    free(kernel);
    free(matrix);
}

/* The way back from extract. */
static void test_extracted(void **state) {
    (void)state;
    error err;
    int count;
    float *after[3] = {NULL};
    edit edits[] = {edit_low_rank(QUERY, 3, 1, 0.02f), edit_low_rank(CONV, 5, 3, 0.02f), edit_low_rank(TEXT, 2, 5, 0.02f)};
    const char *names[] = {edits[0].tensor->stored, edits[1].tensor->stored, edits[2].tensor->stored};
    model_write(in_folder("model.safetensors"), DTYPE_F32, NULL, 0);
    model_write(in_folder("tuned.safetensors"), DTYPE_F32, edits, 3);
    checkpoint tuned;
    extract_options o = {.rank = 5, .type = DTYPE_F32};
    extract_report report;
    if (!checkpoint_open(&tuned, in_folder("tuned.safetensors"), NULL, &err)) fail_msg("%s", err.text);
    if (!extract_lora(&base, &tuned, in_folder("out.safetensors"), &o, &report, &err)) fail_msg("%s", err.text);
    const layer_text layers[] = {{"out.safetensors", 1, 1}};
    if (!merge("model.safetensors", "merged.safetensors", layers, 1, &count, &err)) fail_msg("%s", err.text);
    assert_int_equal(count, 3);
    compare("tuned.safetensors", "merged.safetensors", names, 3, after);
    for (int k = 0; k < 3; k++) {
        float *expected = edited_values(edits[k].tensor, edits, 3);
        for (size_t i = 0; i < edits[k].tensor->elements; i++) assert_true(fabsf(after[k][i] - expected[i]) < 1e-5f);
        free(expected);
        free(after[k]);
    }
    checkpoint_close(&tuned);
    extract_report_free(&report);
    edits_free(edits, 3);
}

static void check_refused(const char *into, const layer_text *layer, const char *says) {
    error err;
    int count, files = folder_count(folder);
    assert_false(merge(into, "refused.safetensors", layer, 1, &count, &err));
    if (!strstr(err.text, says)) fail_msg("says %s", err.text);
    assert_int_equal(folder_count(folder), files);
}

static void test_refuses(void **state) {
    (void)state;
    model_write(in_folder("half.safetensors"), DTYPE_F16, NULL, 0);
    check_refused("half.safetensors", &(layer_text){"full.safetensors", 1e6f, 1}, "does not fit F16");
    check_refused("half.safetensors", &(layer_text){"full.safetensors", 0, 0}, "change nothing");
    check_refused("half.safetensors", &(layer_text){"lora.safetensors", 0, 1}, "change nothing");
    folder_text(folder, "diffusers/model_index.json", "{\"_class_name\": \"StableDiffusionPipeline\"}");
    char *path = memory_string(in_folder("diffusers"));
    model_write_folder(path, DTYPE_F16, NULL, 0);
    check_refused("diffusers", &(layer_text){"lora.safetensors", 1, 1}, "is a folder");
    free(path);
}

static int open_place(void **state) {
    error err;
    cpu = device_open("cpu", "fp32", 1, &err);
    if (base_open(state) != 0 || !cpu) return -1;
    write_adapters();
    return 0;
}

static int close_place(void **state) {
    device_close(cpu);
    return base_close(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_extracted),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, open_place, close_place);
}
