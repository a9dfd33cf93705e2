/* Strength by block: the extension's lists and presets, and which block every module of Stable Diffusion 1.5 lies in. */
#include "lora/block_weights.h"
#include "lora/stack.h"
#include "tests/lora/lora_place.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { IN = 1, MIDDLE = 13, OUT = 14 };

/* By the name in the original checkpoint; -1: in none. */
static int block_of(const char *kohya, const char *original) {
    int number;
    const char *at;
    if (strncmp(kohya, "lora_te_", 8) == 0) return 0;
    if ((at = strstr(original, "input_blocks.")) && sscanf(at, "input_blocks.%d.", &number) == 1) return IN + number;
    if (strstr(original, "middle_block.")) return MIDDLE;
    if ((at = strstr(original, "output_blocks.")) && sscanf(at, "output_blocks.%d.", &number) == 1) return OUT + number;
    return -1;
}

static void test_modules(void **state) {
    (void)state;
    block_weights b = {.given = true};
    for (int i = 0; i < BLOCK_WEIGHTS; i++) b.of[i] = (float)i + 2;
    FILE *file = fopen(TEST_DATA "/sd15_modules.tsv", "r");
    assert_non_null(file);
    char line[512], kohya[160], diffusers[160], original[160];
    int count = 0;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%159s %159s %159s", kohya, diffusers, original) != 3) continue;
        const module_info *m = module_table_find(table, kohya);
        if (!m) continue;
        int block = block_of(kohya, original);
        if (block_weights_of(&b, m) != (block < 0 ? 1 : b.of[block]))
            fail_msg("%s: %g, not block %d", kohya, (double)block_weights_of(&b, m), block);
        count++;
    }
    fclose(file);
    assert_true(count > 400);
    assert_true(block_weights_of(&(block_weights){0}, table->modules) == 1);
}

static void assert_weights(const char *text, const char *all) {
    block_weights b;
    error err;
    char shown[BLOCK_WEIGHTS_TEXT];
    if (!block_weights_parse(&b, text, &err)) fail_msg("%s", err.text);
    block_weights_text(&b, shown);
    assert_string_equal(shown, all);
    assert_true(b.given);
}

static void test_lists(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "1",
                                      "all",
                                      "1,2,3,4,5,6,7,8,9,10,11,12",
                                      "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,",
                                      "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,R",
                                      "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
                                      "nan,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"};
    /* BASE, IN00 .. IN11, M00, OUT00 .. OUT11 */
    assert_weights("1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", "1,0,2,3,0,4,5,0,6,7,0,0,0,8,0,0,0,9,10,11,12,13,14,15,16,17");
    assert_weights("0.5, 1 ,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,-25",
                   "0.5,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,-25");
    assert_weights("NONE", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0");
    assert_weights("IND", "1,0,0,0,0,0,1,0,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0");
    assert_weights("MIDD", "1,0,0,0,0,0,1,0,1,1,0,0,0,1,0,0,0,1,1,1,1,0,0,0,0,0");
    assert_weights("OUTALL", "1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1");
    assert_weights("ALL0.5", "0.5,0,0.5,0.5,0,0.5,0.5,0,0.5,0.5,0,0,0,0.5,0,0,0,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        block_weights b;
        error err;
        if (block_weights_parse(&b, bad[i], &err)) fail_msg("%s was accepted", bad[i]);
        assert_non_null(strstr(err.text, "lbw="));
    }
}

static void test_specs(void **state) {
    (void)state;
    static const char *const texts[] = {"a.safetensors:0.8:lbw=OUTALL", "a.safetensors:0.8:0.4:lbw=OUTALL", "a.safetensors:lbw=OUTALL"};
    static const float unet[] = {0.8f, 0.8f, 1}, text[] = {0.8f, 0.4f, 1};
    const module_info *in = module_table_find(table, "lora_unet_down_blocks_0_attentions_0_proj_in"),
                      *out = module_table_find(table, "lora_unet_up_blocks_3_attentions_2_proj_in"),
                      *encoder = module_table_find(table, "lora_te_text_model_encoder_layers_3_mlp_fc1");
    for (int i = 0; i < 3; i++) {
        adapter_spec spec;
        error err;
        if (!adapter_spec_parse(texts[i], &spec, &err)) fail_msg("%s", err.text);
        assert_string_equal(spec.path, "a.safetensors");
        assert_true(spec.unet_weight == unet[i] && spec.text_weight == text[i] && spec.blocks.given);
        assert_true(adapter_spec_weight(&spec, in) == 0 && adapter_spec_weight(&spec, out) == unet[i] &&
                    adapter_spec_weight(&spec, encoder) == text[i]);
        free(spec.path);
    }
    adapter_spec spec;
    error err;
    assert_false(adapter_spec_parse("a.safetensors:0.8:lbw=SOME", &spec, &err));
    assert_non_null(strstr(err.text, "--lora a.safetensors:0.8:lbw=SOME"));
    assert_true(adapter_spec_parse("a.safetensors:0.8", &spec, &err));
    assert_true(!spec.blocks.given && adapter_spec_weight(&spec, in) == 0.8f);
    free(spec.path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_modules), cmocka_unit_test(test_lists), cmocka_unit_test(test_specs)};
    return cmocka_run_group_tests(tests, lora_place_open, lora_place_close);
}
