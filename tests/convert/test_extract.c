/* The difference of two models as a LoRA: what was merged is found again, in any layout and precision; what it cannot hold; bad models. */
#include "convert/extract.h"
#include "convert/svd.h"
#include "edited_model.h"

static const char *const CHANGED[] = {"lora_te_text_model_encoder_layers_1_self_attn_q_proj",
                                      "lora_unet_down_blocks_0_attentions_0_proj_in",
                                      "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
                                      "lora_unet_down_blocks_0_downsamplers_0_conv", "lora_unet_up_blocks_3_resnets_2_conv1"};

enum { CHANGES = LENGTH(CHANGED), RANK = 3 };

static void make_edits(edit edits[CHANGES]) {
    for (uint32_t i = 0; i < CHANGES; i++) edits[i] = edit_low_rank(CHANGED[i], RANK, 10 * i + 1, 0.02f);
}

static extract_report extract(const char *tuned, const char *out, extract_options o) {
    error err;
    checkpoint t;
    extract_report report;
    if (!checkpoint_open(&t, in_folder(tuned), NULL, &err)) fail_msg("%s", err.text);
    if (!extract_lora(&base, &t, in_folder(out), &o, &report, &err)) fail_msg("%s", err.text);
    checkpoint_close(&t);
    return report;
}

static const safetensors_tensor *part_of(const safetensors *st, const char *flat, const char *part) {
    char name[256];
    snprintf(name, sizeof name, "%s.%s", flat, part);
    return safetensors_find(st, name);
}

/* alpha / rank * up down: [out, in * kernel^2] */
static float *lora_product(const safetensors *st, const module_info *m, int64_t *rank) {
    const safetensors_tensor *up = part_of(st, m->flat, "lora_up.weight"), *down = part_of(st, m->flat, "lora_down.weight"),
                             *alpha = part_of(st, m->flat, "alpha");
    assert_true(up && down && alpha && alpha->rank == 0);
    assert_int_equal(up->rank, m->convolution ? 4 : 2);
    assert_int_equal(down->rank, m->convolution ? 4 : 2);
    *rank = down->dims[0];
    int64_t columns = m->in * m->kernel * m->kernel;
    assert_true(up->dims[0] == m->out && up->dims[1] == *rank && down->dims[1] == m->in);
    float *u = safetensors_read_f32(st, up, NULL), *d = safetensors_read_f32(st, down, NULL), *a = safetensors_read_f32(st, alpha, NULL);
    assert_true(a[0] == (float)*rank);
    float *product = memory_new((size_t)(m->out * columns), sizeof *product);
    for (int64_t i = 0; i < m->out; i++)
        for (int64_t k = 0; k < *rank; k++)
            for (int64_t j = 0; j < columns; j++) product[i * columns + j] += u[i * *rank + k] * d[k * columns + j];
    free(u);
    free(d);
    free(a);
    return product;
}

/* The norm of a - b relative to that of b. */
static double distance(const float *a, const float *b, size_t count) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]), norm += (double)b[i] * b[i];
    return sqrt(difference / norm);
}

static void check_recovered(const char *name, const edit edits[CHANGES], double allowed) {
    error err;
    safetensors st;
    if (!safetensors_open(&st, in_folder(name), &err)) fail_msg("%s", err.text);
    assert_int_equal(st.count, 3 * CHANGES);
    for (int i = 0; i < CHANGES; i++) {
        int64_t rank;
        float *product = lora_product(&st, module_at(CHANGED[i]), &rank);
        double away = distance(product, edits[i].added, edits[i].tensor->elements);
        if (away > allowed) fail_msg("%s: %g away", CHANGED[i], away);
        free(product);
    }
    safetensors_close(&st);
}

static void test_recovers(void **state) {
    (void)state;
    edit edits[CHANGES];
    make_edits(edits);
    model_write(in_folder("tuned.safetensors"), DTYPE_F32, edits, CHANGES);
    static const struct {
        dtype type;
        double allowed;
    } types[] = {{DTYPE_F32, 1e-4}, {DTYPE_F16, 1e-3}, {DTYPE_BF16, 1e-2}};
    for (size_t i = 0; i < LENGTH(types); i++) {
        extract_report r = extract("tuned.safetensors", "out.safetensors", (extract_options){.rank = RANK, .type = types[i].type});
        check_recovered("out.safetensors", edits, types[i].allowed);
        assert_true(r.modules[CHECKPOINT_UNET] == 4 && r.modules[CHECKPOINT_TEXT_ENCODER] == 1 && r.loss_count == 0 && r.vae_tensors == 0);
        assert_true(r.least_rank == RANK && r.most_rank == RANK && r.held > 0.9999);
        extract_report_free(&r);
    }
    edits_free(edits, CHANGES);
}

/* The model in other names, and in another precision, which is no difference by itself. */
static void test_layouts(void **state) {
    (void)state;
    edit edits[CHANGES];
    make_edits(edits);
    char *path = memory_string(in_folder("diffusers"));
    folder_text(folder, "diffusers/model_index.json", "{\"_class_name\": \"StableDiffusionPipeline\"}");
    model_write_folder(path, DTYPE_F32, edits, CHANGES);
    extract_report r = extract("diffusers", "out.safetensors", (extract_options){.rank = 8, .type = DTYPE_F32});
    check_recovered("out.safetensors", edits, 1e-4);
    extract_report_free(&r);
    model_write_folder(path, DTYPE_F16, edits, CHANGES);
    r = extract("diffusers", "out.safetensors", (extract_options){.rank = RANK, .type = DTYPE_F32});
    check_recovered("out.safetensors", edits, 2e-2);
    assert_true(r.loss_count == 0 && r.vae_tensors == 0);
    extract_report_free(&r);
    free(path);
    edits_free(edits, CHANGES);
}

static void test_what_no_lora_holds(void **state) {
    (void)state;
    edit edits[] = {edit_low_rank(CHANGED[2], 2, 1, 0.02f), edit_noise(CHECKPOINT_UNET, "down_blocks.0.resnets.0.norm1.weight", 3, 0.5f),
                    edit_noise(CHECKPOINT_UNET, "conv_in.bias", 4, 0.001f),
                    edit_noise(CHECKPOINT_TEXT_ENCODER, "text_model.embeddings.position_embedding.weight", 5, 0.0001f),
                    edit_noise(CHECKPOINT_VAE, "decoder.conv_in.bias", 6, 0.1f)};
    model_write(in_folder("tuned.safetensors"), DTYPE_F32, edits, LENGTH(edits));
    extract_report r = extract("tuned.safetensors", "out.safetensors", (extract_options){.rank = 4, .type = DTYPE_F32});
    assert_true(r.modules[CHECKPOINT_UNET] == 1 && r.modules[CHECKPOINT_TEXT_ENCODER] == 0 && r.vae_tensors == 1);
    assert_int_equal(r.loss_count, 3);
    for (int i = 0; i < 3; i++) assert_true(i == 0 || r.losses[i].share <= r.losses[i - 1].share);
    bool found = false;
    for (int i = 0; i < 3; i++) {
        if (strcmp(r.losses[i].name, edits[1].tensor->name) != 0) continue;
        double norm = 0;
        for (size_t k = 0; k < edits[1].tensor->elements; k++) norm += (double)edits[1].added[k] * edits[1].added[k];
        assert_true(fabs(r.losses[i].norm / sqrt(norm) - 1) < 1e-4);
        found = true;
    }
    assert_true(found);
    extract_report_free(&r);
    edits_free(edits, LENGTH(edits));
}

/* Ranks by size and by share, of 3x3 convolutions apart; never more than a module has. */
static void test_ranks(void **state) {
    (void)state;
    edit edits[] = {edit_noise(CHECKPOINT_UNET, "down_blocks.0.attentions.0.proj_in.weight", 1, 0.1f),
                    edit_noise(CHECKPOINT_UNET, "down_blocks.0.downsamplers.0.conv.weight", 2, 0.1f),
                    edit_noise(CHECKPOINT_UNET, "conv_out.weight", 3, 0.1f)};
    static const char *const flats[] = {"lora_unet_down_blocks_0_attentions_0_proj_in", "lora_unet_down_blocks_0_downsamplers_0_conv",
                                        "lora_unet_conv_out"};
    static const struct {
        extract_options options;
        int64_t ranks[3];
    } cases[] = {{{.rank = 5, .type = DTYPE_F32}, {5, 5, 4}},
                 {{.rank = 5, .conv_rank = 2, .type = DTYPE_F32}, {5, 2, 2}},
                 {{.rank = 1000, .type = DTYPE_F32}, {32, 32, 4}},
                 {{.energy = 1, .type = DTYPE_F32}, {32, 32, 4}},
                 {{.rank = 2, .energy = 0.999, .type = DTYPE_F32}, {2, 2, 2}}};
    model_write(in_folder("tuned.safetensors"), DTYPE_F32, edits, LENGTH(edits));
    for (size_t i = 0; i < LENGTH(cases); i++) {
        extract_report r = extract("tuned.safetensors", "out.safetensors", cases[i].options);
        safetensors st;
        assert_true(safetensors_open(&st, in_folder("out.safetensors"), NULL));
        for (int k = 0; k < 3; k++) assert_int_equal(part_of(&st, flats[k], "lora_down.weight")->dims[0], cases[i].ranks[k]);
        safetensors_close(&st);
        extract_report_free(&r);
    }
    extract_report r = extract("tuned.safetensors", "out.safetensors", (extract_options){.energy = 0.7, .type = DTYPE_F32});
    safetensors st;
    assert_true(safetensors_open(&st, in_folder("out.safetensors"), NULL) && r.held >= 0.7 && r.held < 0.8);
    for (int k = 0; k < 3; k++) { /* the smallest that keeps the share */
        svd d;
        const module_info *m = module_at(flats[k]);
        int64_t rank = part_of(&st, flats[k], "lora_down.weight")->dims[0];
        assert_true(svd_matrix(edits[k].added, m->out, m->in * m->kernel * m->kernel, rank, &d, NULL));
        assert_true(d.error * d.error <= 0.3 + 1e-5);
        svd_free(&d);
        if (rank == 1) continue;
        assert_true(svd_matrix(edits[k].added, m->out, m->in * m->kernel * m->kernel, rank - 1, &d, NULL));
        assert_true(d.error * d.error > 0.3 - 1e-5);
        svd_free(&d);
    }
    safetensors_close(&st);
    extract_report_free(&r);
    edits_free(edits, LENGTH(edits));
}

/* sd-scripts' clamping: one value in a hundred, of those above 0, is cut down to the quantile, and as far below 0. */
static void test_clamping(void **state) {
    (void)state;
    edit e = edit_noise(CHECKPOINT_UNET, "down_blocks.0.downsamplers.0.conv.weight", 2, 0.1f);
    model_write(in_folder("tuned.safetensors"), DTYPE_F32, &e, 1);
    extract_report r = extract("tuned.safetensors", "out.safetensors", (extract_options){.rank = 8, .clamp = 0.99, .type = DTYPE_F32});
    safetensors st;
    assert_true(safetensors_open(&st, in_folder("out.safetensors"), NULL));
    const char *flat = "lora_unet_down_blocks_0_downsamplers_0_conv";
    const safetensors_tensor *tensors[] = {part_of(&st, flat, "lora_up.weight"), part_of(&st, flat, "lora_down.weight")};
    float most = 0;
    size_t at_most = 0, count = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int k = 0; k < 2; k++) {
            const float *values = tensors[k]->data;
            for (size_t i = 0; i < tensors[k]->elements; i++) {
                if (pass == 0) most = fmaxf(most, values[i]);
                at_most += pass && values[i] == most;
                count += pass == 0;
                assert_true(pass == 0 || fabsf(values[i]) <= most);
            }
        }
    assert_in_range(at_most, count / 100, count / 100 + 1);
    safetensors_close(&st);
    extract_report_free(&r);
    free(e.added);
}

static void test_text_encoder_left_out(void **state) {
    (void)state;
    edit edits[CHANGES];
    make_edits(edits);
    model_write(in_folder("tuned.safetensors"), DTYPE_F32, edits, CHANGES);
    extract_report r = extract("tuned.safetensors", "out.safetensors", (extract_options){.rank = 4, .least = 1, .type = DTYPE_F16});
    assert_true(r.text_encoder_left_out && r.modules[CHECKPOINT_TEXT_ENCODER] == 0 && r.modules[CHECKPOINT_UNET] == 4);
    extract_report_free(&r);
    r = extract("tuned.safetensors", "out.safetensors", (extract_options){.rank = 4, .least = 1e-6, .type = DTYPE_F16});
    assert_true(!r.text_encoder_left_out && r.modules[CHECKPOINT_TEXT_ENCODER] == 1);
    extract_report_free(&r);
    edits_free(edits, CHANGES);
}

static void check_refused(const char *name, const char *says) {
    error err;
    checkpoint t;
    extract_report report;
    extract_options o = {.rank = 4, .type = DTYPE_F16};
    if (!checkpoint_open(&t, in_folder(name), NULL, &err)) fail_msg("%s", err.text);
    int files = folder_count(folder);
    assert_false(extract_lora(&base, &t, in_folder("refused.safetensors"), &o, &report, &err));
    if (!strstr(err.text, says)) fail_msg("%s: says %s", name, err.text);
    assert_int_equal(folder_count(folder), files);
    assert_true(!report.losses && !report.loss_count);
    checkpoint_close(&t);
}

static void test_refuses(void **state) {
    (void)state;
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (size_t i = 0; i < LENGTH(types); i++) {
        model_write(in_folder("same.safetensors"), types[i], NULL, 0);
        check_refused("same.safetensors", "do not differ in anything a LoRA can hold");
    }
    edit e = edit_noise(CHECKPOINT_UNET, "conv_in.weight", 1, 0.1f);
    e.added[7] = NAN;
    model_write(in_folder("nan.safetensors"), DTYPE_F32, &e, 1);
    check_refused("nan.safetensors", "input_blocks.0.0.weight has NaN or infinity");
    free(e.added);
    assert_true(tiny_model_write_shape(in_folder("narrow.safetensors"), 1, (tiny_model_shape){32, 32, 64, 3, DTYPE_F16, 4}));
    check_refused("narrow.safetensors", "not of one architecture");
    assert_true(tiny_model_write_shape(in_folder("wide.safetensors"), 1, (tiny_model_shape){64, 32, 64, 2, DTYPE_F16, 4}));
    check_refused("wide.safetensors", "not of one architecture");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recovers), cmocka_unit_test(test_layouts),  cmocka_unit_test(test_what_no_lora_holds),
        cmocka_unit_test(test_ranks),    cmocka_unit_test(test_clamping), cmocka_unit_test(test_text_encoder_left_out),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, base_open, base_close);
}
