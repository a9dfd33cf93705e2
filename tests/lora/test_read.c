/* Files that cannot be used, or only in part: each refused or reported by name. */
#include "lora/adapter.h"
#include "lora/stack.h"
#include "tests/lora/lora_place.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include <cmocka.h>

static float values[200000]; /* what tensors of test files hold */

static int setup(void **state) {
    for (int i = 0; i < 200000; i++) values[i] = (float)(i % 7) * 0.1f;
    return lora_place_open(state);
}

/* ---- Files made of a few tensors ---- */

typedef struct item {
    const char *name;
    int rank;
    int64_t dims[4];
    dtype type;        /* F32 is 0 */
    const float *data; /* NULL: `values` */
} item;

enum { ITEMS = 8 };

typedef struct bad_file {
    item items[ITEMS];
    safetensors_pair metadata;
    const char *says[3]; /* what the message must name, beside the file */
} bad_file;

static void write_items(const char *path, const item *items, safetensors_pair metadata) {
    safetensors_writer w = {0};
    error err;
    void *blocks[ITEMS] = {0};
    for (int i = 0; i < ITEMS && items[i].name; i++) {
        size_t n = 1;
        for (int j = 0; j < items[i].rank; j++) n *= (size_t)items[i].dims[j];
        const float *data = items[i].data ? items[i].data : values;
        bool ok;
        bool eight = items[i].type == DTYPE_F8_E4M3 || items[i].type == DTYPE_F8_E5M2;
        if (items[i].type == DTYPE_I64 || items[i].type == DTYPE_I8 || eight) {
            blocks[i] = memory_new(n + 1, 8);
            if (eight) memset(blocks[i], 0x38, n); /* 1 and 0.5 */
            ok = safetensors_writer_add(&w, items[i].name, items[i].type, items[i].rank, items[i].dims, blocks[i], &err);
        } else {
            ok = safetensors_writer_add_f32(&w, items[i].name, items[i].type, items[i].rank, items[i].dims, data, &err);
        }
        if (!ok) fail_msg("%s", err.text);
    }
    if (metadata.key) safetensors_writer_metadata(&w, metadata.key, metadata.value);
    if (!safetensors_writer_write(&w, path, &err)) fail_msg("%s", err.text);
    safetensors_writer_free(&w);
    for (int i = 0; i < ITEMS; i++) free(blocks[i]);
}

#define Q "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
#define K "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
#define C "lora_unet_mid_block_resnets_0_conv1"
#define T "lora_te_text_model_encoder_layers_3_mlp_fc1"
#define DOWN ".lora_down.weight"
#define UP ".lora_up.weight"
/* The tensors of a LoRA that fits module Q. */
#define GOOD_DOWN \
    { Q DOWN, 2, {4, 80}, DTYPE_F16, NULL }
#define GOOD_UP \
    { Q UP, 2, {80, 4}, DTYPE_F16, NULL }

static const float not_a_number[400] = {[7] = NAN}, infinite[400] = {[390] = INFINITY}, zero[1] = {0}, zero_six[6] = {0},
                   infinity_one[1] = {INFINITY};

static const bad_file BAD[] = {
    /* other sizes and shapes */
    {{{Q DOWN, 2, {4, 320}, 0, NULL}, {Q UP, 2, {80, 4}, 0, NULL}}, {0}, {Q, "[4, 320]", "[80, 80]"}},
    {{{Q DOWN, 2, {4, 80}, 0, NULL}, {Q UP, 2, {320, 4}, 0, NULL}}, {0}, {Q, "[320, 4]", "another model size"}},
    {{{Q DOWN, 2, {4, 80}, 0, NULL}, {Q UP, 2, {80, 8}, 0, NULL}}, {0}, {Q, "rank", "8"}},
    {{{Q DOWN, 2, {0, 80}, 0, NULL}, {Q UP, 2, {80, 0}, 0, NULL}}, {0}, {Q, "rank", "0"}},
    {{{Q DOWN, 1, {320}, 0, NULL}, GOOD_UP}, {0}, {Q, "[320]", NULL}},
    {{{Q DOWN, 3, {4, 80, 1}, 0, NULL}, GOOD_UP}, {0}, {Q, "[4, 80, 1]", NULL}},
    {{{C DOWN, 4, {4, 80, 1, 1}, 0, NULL}, {C UP, 4, {80, 4, 1, 1}, 0, NULL}}, {0}, {C, "[4, 80, 1, 1]", "[80, 80, 3, 3]"}},
    {{{Q DOWN, 4, {4, 80, 3, 3}, 0, NULL}, {Q UP, 4, {80, 4, 1, 1}, 0, NULL}}, {0}, {Q, "[4, 80, 3, 3]", NULL}},
    {{{C DOWN, 4, {4, 80, 1, 1}, 0, NULL}, {C UP, 4, {80, 4, 1, 1}, 0, NULL}, {C ".lora_mid.weight", 4, {4, 5, 3, 3}, 0, NULL}},
     {0},
     {C, "lora_mid", "[4, 5, 3, 3]"}},
    /* values */
    {{{Q DOWN, 2, {4, 80}, 0, not_a_number}, GOOD_UP}, {0}, {Q DOWN, "NaN", NULL}},
    {{{Q DOWN, 2, {4, 80}, 0, NULL}, {Q UP, 2, {80, 4}, DTYPE_BF16, not_a_number}}, {0}, {Q UP, "NaN", NULL}},
    {{{Q DOWN, 2, {5, 80}, 0, infinite}, {Q UP, 2, {80, 5}, 0, NULL}}, {0}, {Q DOWN, "infinity", NULL}},
    {{GOOD_DOWN, GOOD_UP, {Q ".alpha", 0, {0}, 0, infinity_one}}, {0}, {Q ".alpha", "infinity", NULL}},
    {{GOOD_DOWN, GOOD_UP, {Q ".alpha", 1, {2}, 0, NULL}}, {0}, {Q ".alpha", "one number", NULL}},
    {{{Q DOWN, 2, {4, 80}, DTYPE_I8, NULL}, GOOD_UP}, {0}, {Q DOWN, "I8", NULL}},
    {{GOOD_DOWN, GOOD_UP, {"lora_unet_unknown" DOWN, 2, {4, 80}, 0, not_a_number}}, {0}, {"lora_unet_unknown", "NaN", NULL}},
    {{GOOD_DOWN, GOOD_UP, {"bundle_emb.word.clip_l", 1, {48}, 0, not_a_number}}, {0}, {"bundle_emb", "NaN", NULL}},
    /* parts */
    {{GOOD_DOWN}, {0}, {Q, "lora_up.weight", NULL}},
    {{GOOD_UP, {Q ".alpha", 0, {0}, 0, NULL}}, {0}, {Q, "lora_down.weight", NULL}},
    {{{Q ".alpha", 0, {0}, 0, NULL}}, {0}, {Q, "unknown set of parts", "alpha"}},
    {{GOOD_DOWN, GOOD_UP, {Q ".lora_sideways.weight", 2, {4, 4}, 0, NULL}}, {0}, {Q, "lora_sideways.weight", "LoRA"}},
    {{GOOD_DOWN, GOOD_UP, {Q ".lora_A.weight", 2, {4, 80}, 0, NULL}}, {0}, {Q, "twice", NULL}},
    {{GOOD_DOWN, GOOD_UP, {"lora_unet_middle_block_1_transformer_blocks_0_attn2_to_q" DOWN, 2, {4, 80}, 0, NULL}},
     {0},
     {"twice", "middle_block_1", NULL}},
    /* other kinds: parts that are missing, or do not fit the module */
    {{{Q ".hada_w1_a", 2, {80, 4}, 0, NULL}, {Q ".hada_w1_b", 2, {4, 80}, 0, NULL}}, {0}, {Q, "hada_w2_a", NULL}},
    {{{Q ".lokr_w1", 2, {8, 8}, 0, NULL}, {Q ".lokr_w2", 2, {10, 9}, 0, NULL}}, {0}, {Q, "lokr_w2", "another model size"}},
    {{{Q ".lokr_w1", 2, {8, 7}, 0, NULL}, {Q ".lokr_w2", 2, {10, 10}, 0, NULL}}, {0}, {Q, "lokr_w1", "another model size"}},
    {{{Q ".lokr_w1", 2, {8, 8}, 0, NULL}, {Q ".lokr_w2_a", 2, {10, 2}, 0, NULL}}, {0}, {Q, "lokr_w2_b", NULL}},
    {{{Q ".weight", 1, {81}, 0, NULL}, {Q ".on_input", 0, {0}, 0, NULL}}, {0}, {Q, "another model size", NULL}},
    {{{Q ".weight", 1, {80}, 0, NULL}}, {0}, {Q, "on_input", NULL}},
    {{{Q ".diff", 2, {80, 81}, 0, NULL}}, {0}, {Q, "diff", "another model size"}},
    {{GOOD_DOWN, GOOD_UP, {"lora_unet_mid_block_resnets_0_norm1.w_norm", 1, {81}, 0, NULL}}, {0}, {"norm1", "another model size", NULL}},
    {{GOOD_DOWN, GOOD_UP, {Q ".w_norm", 1, {80}, 0, NULL}}, {0}, {Q, "w_norm", NULL}},
    {{{Q ".a1.weight", 2, {80, 4}, 0, NULL}}, {0}, {Q, "a2.weight", NULL}},
    {{{Q ".oft_blocks", 3, {8, 11, 11}, 0, NULL}}, {0}, {Q, "oft_blocks", "another model size"}},
    {{{Q ".oft_blocks", 4, {2, 8, 10, 9}, 0, NULL}}, {0}, {Q, "oft_blocks", "another model size"}},
    {{{Q ".oft_blocks", 4, {6, 8, 10, 10}, 0, NULL}}, {0}, {Q, "oft_blocks", "another model size"}},
    {{{Q ".q_layer.weight", 2, {4, 80}, 0, NULL}}, {0}, {"T-LoRA", Q, NULL}},
    {{{Q ".hada_w1_a", 2, {80, 4}, 0, NULL},
      {Q ".hada_w1_b", 2, {4, 80}, 0, NULL},
      {Q ".hada_w2_a", 2, {80, 3}, 0, NULL},
      {Q ".hada_w2_b", 2, {4, 80}, 0, NULL}},
     {0},
     {Q, "hada_w2_a", "another model size"}},
    {{{Q ".lokr_w1", 2, {8, 8}, 0, NULL}, {Q ".lokr_w1_a", 2, {8, 2}, 0, NULL}, {Q ".lokr_w2", 2, {10, 10}, 0, NULL}},
     {0},
     {Q, "lokr_w1", "factors"}},
    {{{Q ".lokr_w1", 1, {8}, 0, NULL}, {Q ".lokr_w2", 2, {10, 10}, 0, NULL}}, {0}, {Q, "lokr_w1", "another model size"}},
    {{{Q ".ia3_l", 2, {81, 1}, 0, NULL}}, {0}, {Q, "ia3_l", "another model size"}},
    {{{Q ".oft_R.weight", 2, {8, 44}, 0, NULL}}, {0}, {Q, "oft_R.weight", "another model size"}},
    {{{Q ".oft_R.weight", 2, {7, 45}, 0, NULL}}, {0}, {Q, "oft_R.weight", "another model size"}},
    {{{Q ".oft_R.weight", 1, {45}, 0, NULL}}, {0}, {Q, "oft_R.weight", "another model size"}},
    {{{Q ".oft_R.weight", 2, {8, 45}, DTYPE_I8, NULL}}, {0}, {Q, "oft_R.weight", "I8"}},
    {{{Q ".oft_r", 3, {8, 10, 10}, 0, NULL}}, {0}, {Q, "unknown set of parts", "oft_r"}},
    {{{Q ".boft_R", 4, {1, 8, 10, 10}, 0, NULL}}, {0}, {Q, "boft_s", NULL}},
    {{{Q ".boft_s", 2, {80, 1}, 0, NULL}}, {0}, {Q, "boft_R", NULL}},
    {{{Q ".boft_R", 4, {1, 8, 10, 9}, 0, NULL}, {Q ".boft_s", 2, {80, 1}, 0, NULL}}, {0}, {Q, "boft_R", "another model size"}},
    {{{Q ".boft_R", 4, {5, 8, 10, 10}, 0, NULL}, {Q ".boft_s", 2, {80, 1}, 0, NULL}}, {0}, {Q, "boft_R", "another model size"}},
    {{{Q ".boft_R", 4, {1, 8, 10, 10}, 0, NULL}, {Q ".boft_s", 2, {81, 1}, 0, NULL}}, {0}, {Q, "boft_s", "another model size"}},
    /* residuals; of trained adapters they are refused whatever they are */
    {{GOOD_DOWN, GOOD_UP, {Q ".bias", 1, {80}, 0, NULL}}, {0}, {Q, NULL, NULL}},
    {{GOOD_DOWN, GOOD_UP, {Q ".bias", 1, {80}, 0, NULL}}, {0}, {Q, NULL, NULL}},
    {{GOOD_DOWN, GOOD_UP, {Q ".bias_indices", 2, {2, 3}, 0, NULL}}, {0}, {Q, "bias_values", NULL}},
    {{GOOD_DOWN, GOOD_UP, {Q ".bias_values", 1, {3}, 0, NULL}}, {0}, {Q, "bias_indices", NULL}},
    {{{Q ".weight", 1, {80}, 0, NULL}, {Q ".on_input", 0, {0}, 0, NULL}, {Q ".bias", 2, {80, 80}, 0, NULL}}, {0}, {Q, "bias", "(IA)^3"}},
    {{{"unet.mid_block.attentions.0.proj_in.lora_A.weight", 2, {4, 80}, 0, NULL},
      {"unet.mid_block.attentions.0.proj_in.lora_B.weight", 2, {80, 4}, 0, NULL},
      {"unet.mid_block.attentions.0.proj_in.lora_B.bias", 1, {80}, 0, NULL}},
     {0},
     {"lora_B.bias", "proj_in", NULL}},
    {{GOOD_DOWN, GOOD_UP, {Q ".dora_scale", 2, {1, 81}, 0, NULL}}, {0}, {Q, "dora_scale", "another model size"}},
    {{GOOD_DOWN, GOOD_UP, {"bundle_emb.word.clip_l", 2, {2, 768}, 0, NULL}}, {0}, {"bundle_emb.word", "768", "48"}},
    {{GOOD_DOWN, GOOD_UP, {"bundle_emb.word.clip_l", 2, {76, 48}, 0, NULL}}, {0}, {"bundle_emb.word", "76 vectors", NULL}},
    {{GOOD_DOWN, GOOD_UP, {"bundle_emb.word.clip_l", 3, {2, 2, 48}, 0, NULL}}, {0}, {"bundle_emb.word", NULL, NULL}},
    /* other models */
    {{{K DOWN, 2, {4, 2048}, 0, NULL}, {K UP, 2, {80, 4}, 0, NULL}}, {0}, {"SDXL", "2048", NULL}},
    {{{K DOWN, 2, {4, 1024}, 0, NULL}, {K UP, 2, {80, 4}, 0, NULL}}, {0}, {"Stable Diffusion 2", "1024", NULL}},
    {{GOOD_DOWN, GOOD_UP, {"lora_te2_text_model_encoder_layers_0_mlp_fc1" DOWN, 2, {4, 1280}, 0, NULL}}, {0}, {"SDXL", "lora_te2_", NULL}},
    {{{"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q" DOWN, 2, {4, 640}, 0, NULL}}, {0}, {"SDXL", NULL, NULL}},
    {{{"lora_unet_double_blocks_0_img_attn_proj" DOWN, 2, {4, 30}, 0, NULL}}, {0}, {"Flux", NULL, NULL}},
    {{{"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", 2, {4, 30}, 0, NULL}}, {0}, {"Flux", NULL, NULL}},
    {{{"transformer.transformer_blocks.0.attn.to_q.lora_A.weight", 2, {4, 30}, 0, NULL}}, {0}, {"Stable Diffusion 3", NULL, NULL}},
    {{GOOD_DOWN, GOOD_UP}, {"ss_base_model_version", "sdxl_base_v1-0"}, {"SDXL", "ss_base_model_version", NULL}},
    {{GOOD_DOWN, GOOD_UP}, {"ss_v2", "True"}, {"Stable Diffusion 2", NULL, NULL}},
    {{GOOD_DOWN, GOOD_UP}, {"lora_adapter_metadata", "[1"}, {"lora_adapter_metadata", NULL, NULL}},
    /* no adapters at all */
    {{{"model.diffusion_model.input_blocks.0.0.weight", 4, {20, 4, 3, 3}, 0, NULL}}, {0}, {"model", "not an adapter", NULL}},
    {{{"decoder.conv_in.weight", 4, {8, 4, 3, 3}, 0, NULL}}, {0}, {"not an adapter", "--vae", NULL}},
    {{{"emb_params", 2, {3, 768}, 0, NULL}}, {0}, {"textual inversion", NULL, NULL}},
    {{{"<my-cat>", 1, {768}, 0, NULL}}, {0}, {"textual inversion", NULL, NULL}},
    {{{"something.else", 2, {4, 4}, 0, NULL}, {"more", 2, {4, 4}, 0, NULL}}, {0}, {"no tensor in it", "more", NULL}},
    {{{"lora_unet_unknown" DOWN, 2, {4, 4}, 0, NULL}, {"lora_unet_unknown" UP, 2, {4, 4}, 0, NULL}},
     {0},
     {"nothing in it fits", "lora_unet_unknown", NULL}},
    {{{0}}, {"empty", "yes"}, {"no tensors", NULL, NULL}},
};

static void test_bad_files(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        error err = {0};
        write_items(in_folder("bad.safetensors"), BAD[i].items, BAD[i].metadata);
        adapter_report report = {0};
        adapter *a = adapter_load(in_folder("bad.safetensors"), table, cpu, i % 2, &report, &err);
        if (a) fail_msg("case %zu (%s) was accepted", i, BAD[i].says[0]);
        if (!strstr(err.text, "bad.safetensors")) fail_msg("case %zu: \"%s\" does not name the file", i, err.text);
        for (int j = 0; j < 3 && BAD[i].says[j]; j++)
            if (!strstr(err.text, BAD[i].says[j])) fail_msg("case %zu: \"%s\" does not say %s", i, err.text, BAD[i].says[j]);
        assert_int_equal(report.unapplied_count, 0);
    }
}

/* ---- Files that are no safetensors, folders ---- */

static void write_text(const char *path, const char *text, size_t size) {
    error err;
    if (!file_write_all(path, text, size, &err)) fail_msg("%s", err.text);
}

static void assert_refused(const char *path, const char *says) {
    error err = {0};
    adapter *a = adapter_load(path, table, cpu, false, NULL, &err);
    if (a) fail_msg("%s was accepted", path);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say %s", err.text, says);
}

static void test_bad_containers(void **state) {
    (void)state;
    assert_refused(in_folder("missing.safetensors"), "missing.safetensors");
    write_text(in_folder("empty.safetensors"), "", 0);
    assert_refused(in_folder("empty.safetensors"), "empty.safetensors");
    write_text(in_folder("short.safetensors"), "\x40\0\0\0\0\0\0\0{\"a\":1}", 15);
    assert_refused(in_folder("short.safetensors"), "short.safetensors");
    write_text(in_folder("pickle.pt"), "PK\3\4 a zip of pickles", 21);
    assert_refused(in_folder("pickle.pt"), "pickle.pt");
}

static void test_bad_folders(void **state) {
    (void)state;
    static const item good[ITEMS] = {{"base_model.model.mid_block.attentions.0.proj_in.lora_A.weight", 4, {2, 80, 1, 1}, 0, NULL},
                                     {"base_model.model.mid_block.attentions.0.proj_in.lora_B.weight", 4, {80, 2, 1, 1}, 0, NULL}};
    static const item turned[ITEMS] = {{"base_model.model.mid_block.resnets.0.conv1.oft_R.weight", 2, {72, 45}, 0, NULL}};
    assert_int_equal(mkdir(in_folder("folder"), 0700), 0);
    assert_refused(in_folder("folder"), "without an adapter");
    write_text(in_folder("folder/adapter_config.json"), "{\"lora_alpha\": \"four\"}", 22);
    assert_refused(in_folder("folder"), "adapter_model.safetensors");
    write_items(in_folder("folder/adapter_model.safetensors"), good, (safetensors_pair){0});
    assert_refused(in_folder("folder"), "lora_alpha");
    write_text(in_folder("folder/adapter_config.json"), "[1, 2]", 6);
    assert_refused(in_folder("folder"), "adapter_config.json");
    write_text(in_folder("folder/adapter_config.json"), "{", 1);
    assert_refused(in_folder("folder"), "adapter_config.json");
    write_text(in_folder("folder/adapter_config.json"), "{\"peft_type\": \"ADALORA\"}", 24);
    assert_refused(in_folder("folder"), "ADALORA");
    write_items(in_folder("folder/adapter_model.safetensors"), turned, (safetensors_pair){0});
    write_text(in_folder("folder/adapter_config.json"), "{\"peft_type\": \"OFT\"}", 20);
    assert_refused(in_folder("folder"), "3x3");
    write_items(in_folder("folder/adapter_model.safetensors"), good, (safetensors_pair){0});
    write_text(in_folder("folder/adapter_config.json"), "{\"lora_alpha\": 4}", 17);
    adapter *a = adapter_load(in_folder("folder"), table, cpu, false, NULL, NULL);
    assert_non_null(a);
    assert_true(a->modules[0].scale == 2);
    adapter_free(a);
}

/* ---- Files that fit in part ---- */

static void test_report(void **state) {
    (void)state;
    static const item items[ITEMS] = {
        GOOD_DOWN,
        GOOD_UP,
        {T DOWN, 2, {4, 48}, DTYPE_BF16, NULL},
        {T UP, 2, {192, 4}, 0, NULL},
        {"lora_unet_mid_block_attentions_9_proj_in" DOWN, 2, {4, 48}, 0, NULL},
        {"lora_unet_mid_block_attentions_9_proj_in" UP, 2, {48, 4}, 0, NULL},
        {"bundle_emb.word.string_to_param.*", 2, {2, 48}, 0, NULL},
        {"bundle_emb.word.clip_l_out", 2, {2, 48}, 0, NULL},
    };
    error err;
    adapter_report report;
    write_items(in_folder("part.safetensors"), items, (safetensors_pair){0});
    adapter *a = adapter_load(in_folder("part.safetensors"), table, cpu, false, &report, &err);
    if (!a) fail_msg("%s", err.text);
    assert_int_equal(report.applied, 2);
    assert_int_equal(report.total, 3);
    assert_int_equal(report.unapplied_count, 2);
    assert_string_equal(report.unapplied[0], "lora_unet_mid_block_attentions_9_proj_in");
    assert_string_equal(report.unapplied[1], "bundle_emb.word.clip_l_out");
    assert_int_equal(a->word_count, 1);
    char text[400];
    adapter_report_text(&report, "F", 1, text, sizeof text);
    assert_string_equal(text, "F: 2 of 3 modules applied; without effect: lora_unet_mid_block_attentions_9_proj_in and 1 more");
    adapter_report_text(&report, "F", 9, text, sizeof text);
    assert_non_null(strstr(text, "proj_in, bundle_emb"));
    adapter_report_text(&report, "F", 9, text, 20);
    assert_int_equal(strlen(text), 19);
    adapter_report_free(&report);
    adapter_free(a);
}

/* Sparse residuals that do not fit. */
static void test_bad_residuals(void **state) {
    (void)state;
    static const float size[2] = {80, 80}, other[2] = {80, 81}, outside[6] = {0, 1, 80, 0, 1, 2}, fraction[6] = {0, 1, 2, -1, 0, 1};
    static const struct {
        item indices, size;
        const char *says;
    } cases[] = {
        {{Q ".bias_indices", 2, {2, 2}, 0, NULL}, {Q ".bias_size", 1, {2}, 0, size}, "bias_indices"},
        {{Q ".bias_indices", 1, {6}, 0, NULL}, {Q ".bias_size", 1, {2}, 0, size}, "bias_indices"},
        {{Q ".bias_indices", 2, {2, 3}, 0, outside}, {Q ".bias_size", 1, {2}, 0, size}, "outside"},
        {{Q ".bias_indices", 2, {2, 3}, 0, fraction}, {Q ".bias_size", 1, {2}, 0, size}, "outside"},
        {{Q ".bias_indices", 2, {2, 3}, 0, zero_six}, {Q ".bias_size", 1, {2}, 0, other}, "bias_size"},
        {{Q ".bias_indices", 2, {2, 3}, 0, zero_six}, {Q ".bias_size", 1, {1}, 0, size}, "bias_size"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error err = {0};
        item items[ITEMS] = {GOOD_DOWN, GOOD_UP, cases[i].indices, cases[i].size, {Q ".bias_values", 1, {3}, DTYPE_F16, NULL}};
        write_items(in_folder("bad.safetensors"), items, (safetensors_pair){0});
        assert_null(adapter_load(in_folder("bad.safetensors"), table, cpu, false, NULL, &err));
        if (!strstr(err.text, cases[i].says) || !strstr(err.text, Q))
            fail_msg("case %zu: \"%s\" does not say %s", i, err.text, cases[i].says);
        assert_null(adapter_load(in_folder("bad.safetensors"), table, cpu, true, NULL, &err));
        assert_non_null(strstr(err.text, "not trained"));
    }
}

/* Spellings of OneTrainer's, and types that are rare. */
static void test_rare_files(void **state) {
    (void)state;
    static const item files[][ITEMS] = {
        {{"diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.lora_A.weight", 2, {4, 80}, 0, NULL},
         {"diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.lora_B.weight", 2, {80, 4}, 0, NULL},
         {"diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.alpha", 0, {0}, DTYPE_BF16, NULL}},
        {{"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q.lora_down.weight", 2, {4, 80}, 0, NULL},
         {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q.lora_up.weight", 2, {80, 4}, 0, NULL}},
        {{"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q.oft_R.weight", 2, {8, 45}, 0, NULL}},
        {{"text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1.lora_A.weight", 2, {4, 48}, 0, NULL},
         {"text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1.lora_B.weight", 2, {192, 4}, 0, NULL}},
        {{"lora_te1_text_model_encoder_layers_3_mlp_fc1" DOWN, 2, {4, 48}, DTYPE_F8_E4M3, NULL},
         {"lora_te1_text_model_encoder_layers_3_mlp_fc1" UP, 2, {192, 4}, DTYPE_F8_E5M2, NULL},
         {"lora_te1_text_model_encoder_layers_3_mlp_fc1.alpha", 0, {0}, DTYPE_F8_E4M3, NULL}},
        {{Q DOWN, 2, {4, 80}, DTYPE_F16, NULL}, {Q UP, 2, {80, 4}, DTYPE_BF16, NULL}, {Q ".alpha", 1, {1}, DTYPE_F16, NULL}},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        error err;
        adapter_report report;
        write_items(in_folder("rare.safetensors"), files[i], (safetensors_pair){0});
        adapter *a = adapter_load(in_folder("rare.safetensors"), table, cpu, false, &report, &err);
        if (!a) fail_msg("file %zu: %s", i, err.text);
        assert_int_equal(report.applied, 1);
        assert_int_equal(report.unapplied_count, 0);
        if (files[i][2].type == DTYPE_F8_E4M3) {
            float down[4 * 48], up[4 * 192];
            assert_true(tensor_read(cpu, a->modules[0].tensors[0].value, down, &err) &&
                        tensor_read(cpu, a->modules[0].tensors[1].value, up, &err));
            assert_true(down[5] == 1 && up[700] == 0.5f && a->modules[0].scale == 0.25);
        }
        assert_string_equal(a->modules[0].info->flat, strstr(files[i][0].name, "mlp") ? T : Q);
        adapter_report_free(&report);
        adapter_free(a);
    }
}

/* DoRA's axis is told by the shape; PEFT's name for the magnitudes means outputs. */
static void test_dora_axis(void **state) {
    (void)state;
#define DOTTED "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    static const item magnitudes[] = {{DOTTED ".dora_scale", 2, {1, 80}, 0, NULL},
                                      {DOTTED ".dora_scale", 2, {80, 1}, 0, NULL},
                                      {DOTTED ".lora_magnitude_vector", 1, {80}, 0, NULL},
                                      {DOTTED ".lora_magnitude_vector.weight", 1, {80}, 0, NULL}};
    for (int i = 0; i < 4; i++) {
        item items[ITEMS] = {{DOTTED ".lora_A.weight", 2, {4, 80}, 0, NULL}, {DOTTED ".lora_B.weight", 2, {80, 4}, 0, NULL}, magnitudes[i]};
        write_items(in_folder("axis.safetensors"), items, (safetensors_pair){0});
        adapter *a = adapter_load(in_folder("axis.safetensors"), table, cpu, false, NULL, NULL);
        assert_non_null(a);
        assert_true(a->modules[0].dora_on_output == (i > 0));
        adapter_free(a);
    }
}

/* No alpha and alpha 0: scale 1; alpha of [1] and of an integer type; `scale` counts before alpha. */
static void test_scales(void **state) {
    (void)state;
    static const float six[1] = {6}, half[1] = {0.5f};
    static const struct {
        item alpha, scale;
        double right;
    } cases[] = {
        {{0}, {0}, 1},
        {{Q ".alpha", 0, {0}, 0, zero}, {0}, 1},
        {{Q ".alpha", 0, {0}, 0, six}, {0}, 1.5},
        {{Q ".alpha", 1, {1}, DTYPE_F16, six}, {0}, 1.5},
        {{Q ".alpha", 0, {0}, DTYPE_I64, NULL}, {0}, 1},
        {{Q ".alpha", 0, {0}, 0, six}, {Q ".scale", 0, {0}, 0, half}, 0.5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        item items[ITEMS] = {GOOD_DOWN, GOOD_UP, cases[i].alpha, cases[i].scale};
        write_items(in_folder("scale.safetensors"), items, (safetensors_pair){0});
        adapter *a = adapter_load(in_folder("scale.safetensors"), table, cpu, false, NULL, NULL);
        assert_non_null(a);
        assert_true(a->modules[0].scale == cases[i].right);
        adapter_free(a);
    }
}

/* ---- --lora ---- */

static void test_specs(void **state) {
    (void)state;
    static const struct {
        const char *text, *path;
        double unet, text_encoder;
    } good[] = {
        {"a.safetensors", "a.safetensors", 1, 1},
        {"a.safetensors:0.8", "a.safetensors", 0.8, 0.8},
        {"a.safetensors:0.8:0", "a.safetensors", 0.8, 0},
        {"a:-1:2.5e-1", "a", -1, 0.25},
    };
    adapter_spec spec;
    error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(adapter_spec_parse(good[i].text, &spec, &err));
        assert_string_equal(spec.path, good[i].path);
        assert_true(spec.unet_weight == (float)good[i].unet && spec.text_weight == (float)good[i].text_encoder);
        free(spec.path);
    }
    static const char *const bad[] = {"", "a.safetensors:strong", "a:nan", "a:", "a:0.5:", "a:1:2:3"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(adapter_spec_parse(bad[i], &spec, &err));
        assert_non_null(strstr(err.text, "--lora"));
    }
    write_text(in_folder("odd:0.5"), "x", 1);
    assert_true(adapter_spec_parse(in_folder("odd:0.5"), &spec, &err));
    assert_string_equal(spec.path, in_folder("odd:0.5"));
    free(spec.path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_residuals), cmocka_unit_test(test_rare_files),     cmocka_unit_test(test_dora_axis),
        cmocka_unit_test(test_bad_files),     cmocka_unit_test(test_bad_containers), cmocka_unit_test(test_bad_folders),
        cmocka_unit_test(test_report),        cmocka_unit_test(test_scales),         cmocka_unit_test(test_specs),
    };
    return cmocka_run_group_tests(tests, setup, lora_place_close);
}
