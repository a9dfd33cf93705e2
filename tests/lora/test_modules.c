/* Names: the table of modules and every spelling of them, against the list of all 463 modules of SD1.5. */
#include "lora/modules.h"
#include "lora/spelling.h"
#include "tests/lora/memory_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { ROWS = 463 };

static sd15_row rows[500];
static checkpoint model;
static module_table *table;

static int setup(void **state) {
    (void)state;
    memory_model_sd15(&model, 1);
    table = module_table_create(&model, NULL);
    return table && sd15_rows_read(rows, 500) == ROWS ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    module_table_free(table);
    memory_model_free(&model);
    return 0;
}

static void test_flat_names(void **state) {
    (void)state;
    char flat[256];
    for (int i = 0; i < ROWS; i++) {
        assert_true(module_flat_name(sd15_part(&rows[i]), sd15_path(&rows[i]), flat, sizeof flat));
        assert_string_equal(flat, rows[i].kohya);
    }
    assert_false(module_flat_name(CHECKPOINT_UNET, "conv_in", flat, 12));
}

static void test_table(void **state) {
    (void)state;
    int found = 0;
    for (int i = 0; i < ROWS; i++) {
        const module_info *m = module_table_find(table, rows[i].kohya);
        if (sd15_is_norm(&rows[i])) {
            found += m != NULL;
            if (m) assert_int_equal(m->kernel, 0);
            continue;
        }
        assert_non_null(m);
        found++;
        assert_string_equal(m->name, sd15_path(&rows[i]));
        assert_int_equal(m->part, sd15_part(&rows[i]));
        assert_int_equal(m->out, rows[i].out);
        assert_int_equal(m->in, rows[i].in);
        assert_int_equal(m->kernel, rows[i].kernel);
        assert_int_equal(m->convolution, strncmp(rows[i].kind, "conv", 4) == 0);
    }
    assert_int_equal(found, 282 + 72 + 109); /* layers of both models, norms */
    assert_int_equal(table->count, found);   /* the embedding is none */
    assert_null(module_table_find(table, "lora_unet_nothing"));
}

static void test_original_spelling(void **state) {
    (void)state;
    char ldm[256], flat[256];
    for (int i = 0; i < ROWS; i++) {
        if (sd15_part(&rows[i]) != CHECKPOINT_UNET) continue;
        snprintf(ldm, sizeof ldm, "lora_unet_%s", rows[i].ldm + strlen("model.diffusion_model."));
        for (char *p = ldm; *p; p++)
            if (*p == '.') *p = '_';
        assert_true(module_flat_from_ldm(ldm, flat, sizeof flat));
        assert_string_equal(flat, rows[i].kohya);
        assert_false(module_flat_from_ldm(rows[i].kohya, flat, sizeof flat) && strcmp(flat, rows[i].kohya) != 0);
    }
}

typedef struct spelled {
    const char *key, *module, *part;
    adapter_style style;
} spelled;

#define Q "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_q"
#define O "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
#define K "lora_te_text_model_encoder_layers_7_self_attn_k_proj"

static void test_spellings(void **state) {
    (void)state;
    static const spelled cases[] = {
        {Q ".lora_down.weight", Q, "lora_down.weight", ADAPTER_KOHYA},
        {Q ".alpha", Q, "alpha", ADAPTER_KOHYA},
        {Q ".lora_B.weight", Q, "lora_up.weight", ADAPTER_KOHYA},
        {Q ".hada_w1_a", Q, "hada_w1_a", ADAPTER_KOHYA},
        {"lora_unet_input_blocks_2_1_transformer_blocks_0_attn2_to_q.lora_up.weight", Q, "lora_up.weight", ADAPTER_LDM},
        {"lora_te_text_model_encoder_layers_7_self_attn_k_proj.alpha", K, "alpha", ADAPTER_KOHYA},
        {"lora_te1_text_model_encoder_layers_7_self_attn_k_proj.alpha", K, "alpha", ADAPTER_KOHYA_TE1},
        {"oft_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.oft_blocks", O, "oft_blocks", ADAPTER_OFT_UNET},
        {"unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q.lora_A.weight", Q, "lora_down.weight", ADAPTER_DOTTED},
        {"unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q.lora.up.weight", Q, "lora_up.weight", ADAPTER_DOTTED},
        {"down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q.lora_B.weight", Q, "lora_up.weight", ADAPTER_DOTTED},
        {"base_model.model.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q.lora_magnitude_vector", Q, "dora_scale",
         ADAPTER_DOTTED},
        {"unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.processor.to_q_lora.down.weight", Q, "lora_down.weight",
         ADAPTER_PROCESSOR},
        {"mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight", O, "lora_up.weight", ADAPTER_PROCESSOR},
        {"text_encoder.text_model.encoder.layers.7.self_attn.k_proj.lora_linear_layer.down.weight", K, "lora_down.weight", ADAPTER_DOTTED},
        {"text_encoder.encoder.layers.7.self_attn.k_proj.lora_linear_layer.up.weight", K, "lora_up.weight", ADAPTER_DOTTED},
        {"text_encoder.text_model.encoder.layers.7.self_attn.to_k_lora.down.weight", K, "lora_down.weight", ADAPTER_PROCESSOR},
        {"base_model.model.text_model.encoder.layers.7.self_attn.k_proj.lora_A.weight", K, "lora_down.weight", ADAPTER_DOTTED},
        {"diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_q.lora_up.weight", Q, "lora_up.weight", ADAPTER_DOTTED},
        {"encoder.layers.7.self_attn.k_proj.lora_A.weight", K, "lora_down.weight", ADAPTER_DOTTED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        spelling s;
        assert_true(spelling_read(cases[i].key, CHECKPOINT_PARTS, &s));
        assert_string_equal(s.module, cases[i].module);
        assert_string_equal(s.part, cases[i].part);
        assert_int_equal(s.style, cases[i].style);
    }
}

static void test_no_module(void **state) {
    (void)state;
    static const char *const keys[] = {
        "emb_params", "bundle_emb.word.string_to_param.*", "lora_unet_down_blocks", "lora_unet_x.", "conv_in.weight", ".alpha", "",
    };
    spelling s;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) assert_false(spelling_read(keys[i], CHECKPOINT_PARTS, &s));
    char longest[2000];
    memset(longest, 'a', sizeof longest);
    memcpy(longest, "lora_unet_", 10);
    memcpy(longest + sizeof longest - 7, ".alpha", 7);
    assert_false(spelling_read(longest, CHECKPOINT_PARTS, &s));
    memcpy(longest, "unet.aaaaa", 10);
    assert_false(spelling_read(longest, CHECKPOINT_PARTS, &s));
    memcpy(longest + sizeof longest - 24, ".to_q_lora.down.weight", 23);
    assert_false(spelling_read(longest, CHECKPOINT_PARTS, &s));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flat_names), cmocka_unit_test(test_table),     cmocka_unit_test(test_original_spelling),
        cmocka_unit_test(test_spellings),  cmocka_unit_test(test_no_module),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
