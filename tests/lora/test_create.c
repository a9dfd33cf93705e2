/* New adapters: which modules the targets choose, how they begin, what is refused. */
#include "lora/kind.h"
#include "lora/settings.h"
#include "tests/lora/memory_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static checkpoint model, small;
static module_table *table, *small_table;
static device *cpu;

static int setup(void **state) {
    (void)state;
    error err;
    memory_model_sd15(&model, 1);
    memory_model_sd15(&small, 16);
    static const char *const norms[] = {"encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2", "final_layer_norm"};
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "text_model.%s.weight", norms[i]);
        memory_model_add(&small, CHECKPOINT_TEXT_ENCODER, name, 1, (int64_t[]){48}, NULL);
    }
    memory_model_finish(&small);
    table = module_table_create(&model, &err);
    small_table = module_table_create(&small, &err);
    cpu = device_open("cpu", "fp32", 1, &err);
    return table && small_table && cpu ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    module_table_free(table);
    module_table_free(small_table);
    memory_model_free(&model);
    memory_model_free(&small);
    device_close(cpu);
    return 0;
}

static adapter *create(const module_table *t, adapter_options o) {
    error err;
    if (!o.rank) o.rank = 1;
    if (o.alpha == 0) o.alpha = 1;
    adapter *a = adapter_create(&o, t, cpu, &err);
    if (!a) fail_msg("%s", err.text);
    return a;
}

/* ---- Targets ---- */

static void test_targets(void **state) {
    (void)state;
    static const struct {
        adapter_options options;
        int unet, text;
    } cases[] = {
        {{.targets = "attn", .train_text_encoder = true}, 128, 48},
        {{.targets = "attn-mlp", .train_text_encoder = true}, 192, 72},
        {{.targets = "full", .train_text_encoder = true}, 282, 72},
        {{.targets = "full"}, 282, 0},
        {{.targets = "attn-only", .train_text_encoder = true}, 128, 48},
        {{.targets = "full-lin", .train_text_encoder = true}, 230, 72},
        {{.targets = "blocks", .train_text_encoder = true}, 278, 72},
        {{.targets = "unet-only", .train_text_encoder = true}, 282, 0},
        {{.targets = "unet-transformer-only", .train_text_encoder = true}, 192, 0},
        {{.targets = "unet-convblock-only", .train_text_encoder = true}, 88, 0},
        {{.targets = "ia3", .train_text_encoder = true}, 80, 36},
        {{.targets = NULL}, 192, 0},
        {{.kind = "locon"}, 282, 0},
        {{.conv_rank = 2}, 282, 0},
        {{.targets = "attn2\\.to_k"}, 16, 0},
        {{.targets = "(to_k|to_v|ff\\.net\\.2)$", .train_text_encoder = true}, 80, 0},
        {{.targets = "^down_blocks\\.0\\."}, 31, 0},
        {{.targets = "^unet\\.mid_block\\..*conv"}, 4, 0},
        {{.targets = "text_encoder.*layers\\.1?1\\.mlp", .train_text_encoder = true}, 0, 4},
        {{.kind = "norm"}, 108, 0},
        {{.kind = "norm", .targets = "full", .train_text_encoder = true}, 108, 2}, /* not the final one */
        {{.kind = "norm", .targets = "attn-mlp"}, 64, 0},
        {{.kind = "norm", .targets = "resnets\\..*norm"}, 44, 0},
        {{.kind = "norm", .train_norm = true}, 108, 0},
        {{.targets = "full", .train_norm = true, .train_text_encoder = true}, 282 + 108, 72},
        {{.kind = "loha", .targets = "attn-mlp", .train_norm = true}, 192 + 64, 0},
        {{.targets = "attn", .train_norm = true}, 128 + 108, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        adapter *a = create(small_table, cases[i].options);
        int unet = 0, text = 0;
        for (int j = 0; j < a->module_count; j++)
            if (a->modules[j].info->part == CHECKPOINT_UNET)
                unet++;
            else
                text++;
        if (unet != cases[i].unet || text != cases[i].text)
            fail_msg("case %zu: %d U-Net and %d text encoder modules, not %d and %d", i, unet, text, cases[i].unet, cases[i].text);
        int tensors = 0;
        for (int j = 0; j < a->module_count; j++) {
            const adapter_module *m = &a->modules[j];
            assert_string_equal(m->kind->name, m->info->kernel == 0 ? "norm" : a->trainee->kind->name);
            tensors += strcmp(m->kind->name, "loha") == 0 ? 4 : 2;
        }
        assert_int_equal(adapter_tensor_count(a), tensors);
        adapter_free(a);
    }
}

/* Parameters per unit of rank, as computed from SD1.5's module list (formats.md 2.4). */
static void test_parameters(void **state) {
    (void)state;
    static const struct {
        adapter_options options;
        int64_t parameters;
    } cases[] = {
        {{.targets = "attn-mlp"}, 423936},
        {{.targets = "attn-mlp", .train_text_encoder = true}, 423936 + 165888},
        {{.targets = "attentions|resnets|samplers"}, 423936 + 626880},
        {{.targets = "attn-mlp", .rank = 3}, 3 * 423936},
        {{.kind = "norm"}, 199680},
        {{.targets = "attn-mlp", .train_norm = true}, 423936 + 99840},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        adapter *a = create(table, cases[i].options);
        assert_int_equal(adapter_parameters(a), cases[i].parameters);
        adapter_free(a);
    }
}

static void test_convolution_ranks(void **state) {
    (void)state;
    adapter *a = create(small_table, (adapter_options){.kind = "locon", .rank = 4, .alpha = 2, .conv_rank = 3, .conv_alpha = 1});
    for (int i = 0; i < a->module_count; i++) {
        const adapter_module *m = &a->modules[i];
        bool large = m->info->kernel == 3;
        assert_int_equal(m->rank, large ? 3 : 4);
        assert_true(m->scale == (large ? 1.0 / 3 : 0.5));
        const tensor *down = m->tensors[0].value, *up = m->tensors[1].value;
        assert_int_equal(down->rank, large ? 3 : 2);
        assert_int_equal(down->dim[0], large ? 9 : 4);
        assert_int_equal(down->dim[down->rank - 1], m->info->in);
        assert_int_equal(m->tensors[0].rank, m->info->convolution ? 4 : 2);
        assert_int_equal(up->rank, 2);
        assert_int_equal(up->dim[0], m->info->out);
        assert_int_equal(up->dim[1], m->rank);
        assert_true(down->needs_grad && down->grad && up->needs_grad && up->grad);
        assert_true(tensor_same_shape(down, down->grad));
    }
    adapter_free(a);
}

/* ---- Every module's own settings ---- */

/* sd-scripts' get_block_index. */
static void test_blocks(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int block;
    } cases[] = {
        {"lora_unet_down_blocks_0_attentions_0_proj_in", 1},
        {"lora_unet_down_blocks_0_resnets_1_conv1", 2},
        {"lora_unet_down_blocks_0_downsamplers_0_conv", 3},
        {"lora_unet_down_blocks_3_resnets_1_conv2", 11},
        {"lora_unet_mid_block_attentions_0_proj_in", 12},
        {"lora_unet_mid_block_resnets_1_conv1", 12},
        {"lora_unet_up_blocks_0_resnets_0_conv1", 13},
        {"lora_unet_up_blocks_0_upsamplers_0_conv", 15},
        {"lora_unet_up_blocks_1_attentions_2_proj_out", 18},
        {"lora_unet_up_blocks_3_attentions_2_proj_in", 24},
        {"lora_unet_conv_in", -1},
        {"lora_unet_time_embedding_linear_1", -1},
        {"lora_te_text_model_encoder_layers_1_mlp_fc1", -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const module_info *m = module_table_find(small_table, cases[i].name);
        assert_non_null(m);
        if (module_block(m) != cases[i].block) fail_msg("%s: block %d, not %d", cases[i].name, module_block(m), cases[i].block);
    }
}

typedef struct own_setting {
    const char *module; /* flat name */
    int rank;           /* 0: it has no adapter */
    double alpha, rate;
} own_setting;

static void expect_settings(adapter_options o, const own_setting *rows, int count) {
    adapter *a = create(small_table, o);
    for (int i = 0; i < count; i++) {
        const module_info *info = module_table_find(small_table, rows[i].module);
        assert_non_null(info);
        const adapter_module *m = adapter_find_module(a, info->part, info->name);
        if (!m != !rows[i].rank) fail_msg("%s: %s", rows[i].module, m ? "has an adapter" : "has no adapter");
        if (!m) continue;
        float rate = m->tensors[0].rate, up = m->tensors[1].rate;
        double ratio = o.up_ratio[info->part] > 0 ? o.up_ratio[info->part] : 1;
        if (m->rank != rows[i].rank || fabs(m->alpha - rows[i].alpha) > 1e-12 || fabs((double)rate - rows[i].rate) > 1e-6 ||
            fabs((double)up - rows[i].rate * ratio) > 1e-5)
            fail_msg("%s: rank %d, alpha %g, rates %g and %g", rows[i].module, (int)m->rank, m->alpha, (double)rate, (double)up);
    }
    adapter_free(a);
}

#define IN_BLOCK_1 "lora_unet_down_blocks_0_attentions_0_proj_in"
#define IN_BLOCK_2 "lora_unet_down_blocks_0_attentions_1_proj_in"
#define IN_MIDDLE "lora_unet_mid_block_attentions_0_proj_in"
#define IN_BLOCK_24 "lora_unet_up_blocks_3_attentions_2_proj_in"
#define CONV_IN_BLOCK_1 "lora_unet_down_blocks_0_resnets_0_conv1"
#define IN_TEXT "lora_te_text_model_encoder_layers_1_mlp_fc1"
#define OUTSIDE "lora_unet_conv_in"

static void test_settings_by_block(void **state) {
    (void)state;
    adapter_options o = {.targets = "full", .rank = 4, .alpha = 2, .train_text_encoder = true};
    o.block_dims = "9,0,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24";
    o.block_alphas = "1,1,1.5,1,1,1,1,1,1,1,1,1,0,1,1,1,1,1,1,1,1,1,1,1, 7";
    o.conv_block_dims = "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1";
    expect_settings(o,
                    (own_setting[]){{IN_BLOCK_1, 0, 0, 0},
                                    {IN_BLOCK_2, 2, 1.5, 1},
                                    {IN_MIDDLE, 12, 12, 1}, /* an alpha of 0 is the rank */
                                    {IN_BLOCK_24, 24, 7, 1},
                                    {CONV_IN_BLOCK_1, 1, 2, 1},
                                    {IN_TEXT, 4, 2, 1},
                                    {OUTSIDE, 4, 2, 1}},
                    7);
    o = (adapter_options){.targets = "full", .rank = 4, .alpha = 2, .train_text_encoder = true};
    o.up_ratio[CHECKPOINT_UNET] = 16, o.up_ratio[CHECKPOINT_TEXT_ENCODER] = 4;
    o.down_lr_weight = "cosine+0.25";
    o.mid_lr_weight = "0.1";
    o.up_lr_weight = "1,,.5"; /* the rest is 1 */
    o.block_lr_zero_threshold = 0.1;
    expect_settings(o,
                    (own_setting[]){{IN_BLOCK_1, 4, 2, sin(1.5707963267948966 * 10 / 11) + 0.25},
                                    {IN_BLOCK_2, 4, 2, sin(1.5707963267948966 * 9 / 11) + 0.25},
                                    {IN_MIDDLE, 0, 0, 0},
                                    {"lora_unet_up_blocks_0_resnets_0_conv1", 4, 2, 1},
                                    {"lora_unet_up_blocks_0_resnets_1_conv1", 0, 0, 0},
                                    {"lora_unet_up_blocks_0_resnets_2_conv1", 4, 2, 0.5},
                                    {IN_BLOCK_24, 4, 2, 1},
                                    {IN_TEXT, 4, 2, 1},
                                    {OUTSIDE, 4, 2, 1}},
                    9);
    o.down_lr_weight = o.mid_lr_weight = NULL;
    o.up_lr_weight = "reverse_linear";
    expect_settings(o, (own_setting[]){{"lora_unet_up_blocks_3_attentions_1_proj_in", 0, 0, 0}, {IN_MIDDLE, 4, 2, 1}}, 2);
}

static void test_settings_by_expression(void **state) {
    (void)state;
    static const char *const ranks[] = {"attentions=8", "^unet\\.mid_block=2", "(a|b=c)onv_in=0"}, *const alphas[] = {"proj_in=3"},
                             *const rates[] = {"down_blocks=2", "blocks\\.0\\.attentions\\.1=0", "text_encoder=0.5"};
    adapter_options o = {.targets = "full", .rank = 4, .alpha = 4, .alpha_is_rank = true, .train_text_encoder = true};
    o.module_rank = (adapter_rules){ranks, 3};
    o.module_alpha = (adapter_rules){alphas, 1};
    o.module_lr = (adapter_rules){rates, 3};
    expect_settings(o,
                    (own_setting[]){{IN_BLOCK_1, 8, 3, 2},
                                    {IN_BLOCK_2, 0, 0, 0},
                                    {IN_MIDDLE, 2, 3, 1},
                                    {"lora_unet_mid_block_attentions_0_proj_out", 2, 2, 1},
                                    {CONV_IN_BLOCK_1, 4, 4, 2},
                                    {IN_TEXT, 4, 4, 0.5},
                                    {OUTSIDE, 4, 4, 1}},
                    7);
}

/* ---- Beginning ---- */

static float *file_values(const adapter_tensor *t) {
    size_t n = (size_t)adapter_tensor_elements(t);
    float *engine = memory_new(n, sizeof *engine), *file = memory_new(n, sizeof *file);
    assert_true(tensor_read(cpu, t->value, engine, NULL));
    adapter_tensor_to_file(t, engine, file);
    free(engine);
    return file;
}

static void test_initial_values(void **state) {
    (void)state;
    adapter *a = create(small_table, (adapter_options){.targets = "full", .rank = 8, .seed = 5});
    for (int i = 0; i < a->module_count; i++) {
        const adapter_module *m = &a->modules[i];
        size_t n = (size_t)adapter_tensor_elements(&m->tensors[0]), n_up = (size_t)adapter_tensor_elements(&m->tensors[1]);
        float *down = file_values(&m->tensors[0]), *up = file_values(&m->tensors[1]);
        double bound = 1 / sqrt((double)(m->info->in * m->info->kernel * m->info->kernel)), squares = 0, largest = 0;
        for (size_t j = 0; j < n; j++) {
            squares += (double)down[j] * (double)down[j];
            largest = fmax(largest, fabs((double)down[j]));
        }
        assert_true(largest <= bound * (1 + 1e-6));
        if (n >= 2000) assert_true(fabs(squares / (double)n / (bound * bound / 3) - 1) < 0.1 && largest > 0.99 * bound);
        for (size_t j = 0; j < n_up; j++) assert_true(up[j] == 0);
        free(down);
        free(up);
    }
    adapter_free(a);
}

/* Deviation 1 / rank, whatever the width. */
static void test_normal_values(void **state) {
    (void)state;
    adapter *a = create(small_table, (adapter_options){.targets = "attn", .rank = 8, .seed = 5, .init = ADAPTER_INIT_NORMAL});
    double squares = 0;
    size_t count = 0;
    for (int i = 0; i < a->module_count; i++) {
        const adapter_module *m = &a->modules[i];
        float *down = file_values(&m->tensors[0]), *up = file_values(&m->tensors[1]);
        for (int64_t j = 0; j < adapter_tensor_elements(&m->tensors[0]); j++, count++) squares += (double)down[j] * (double)down[j];
        for (int64_t j = 0; j < adapter_tensor_elements(&m->tensors[1]); j++) assert_true(up[j] == 0);
        free(down);
        free(up);
    }
    assert_true(fabs(squares / (double)count * 64 - 1) < 0.03);
    adapter_free(a);
}

/* The same module begins the same whatever else is trained; another seed or module begins otherwise. */
static void test_seeds(void **state) {
    (void)state;
    static const char *const name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight";
    static const char *const other = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k.lora_down.weight";
    adapter *a = create(small_table, (adapter_options){.targets = "attn", .seed = 5});
    adapter *b = create(small_table, (adapter_options){.targets = "full", .seed = 5, .train_text_encoder = true});
    adapter *c = create(small_table, (adapter_options){.targets = "attn", .seed = 6});
    const adapter_tensor *t = adapter_tensor_find(a, name);
    assert_non_null(t);
    size_t bytes = (size_t)adapter_tensor_elements(t) * sizeof(float);
    float *values[] = {file_values(t), file_values(adapter_tensor_find(b, name)), file_values(adapter_tensor_find(c, name)),
                       file_values(adapter_tensor_find(a, other))};
    assert_memory_equal(values[0], values[1], bytes);
    assert_memory_not_equal(values[0], values[2], bytes);
    assert_memory_not_equal(values[0], values[3], bytes);
    for (int i = 0; i < 4; i++) free(values[i]);
    assert_null(adapter_tensor_find(a, "lora_unet_nothing.alpha"));
    adapter_free(a);
    adapter_free(b);
    adapter_free(c);
}

static void test_order(void **state) {
    (void)state;
    adapter *a = create(small_table, (adapter_options){.targets = "attn", .train_text_encoder = true});
    int count = adapter_tensor_count(a);
    const char *before = "";
    for (int i = 0; i < count; i++) {
        const adapter_module *m = NULL;
        const adapter_tensor *t = adapter_tensor_at(a, i, &m);
        assert_non_null(t);
        assert_true(strcmp(before, t->name) < 0);
        assert_int_equal(strncmp(t->name, m->info->flat, strlen(m->info->flat)), 0);
        before = t->name;
    }
    assert_null(adapter_tensor_at(a, count, NULL));
    adapter_free(a);
}

/* ---- Refusals ---- */

static void test_refused(void **state) {
    (void)state;
    static const char *const no_number[] = {"attn"}, *const half_a_rank[] = {"attn=2.5"}, *const no_regex[] = {"attn(=2"},
                             *const no_alpha[] = {"attn=0"};
    static const struct {
        adapter_options options;
        const char *says;
    } cases[] = {
        {{.targets = "nothing_like_it", .rank = 4, .alpha = 4}, "--targets nothing_like_it"},
        {{.targets = "attn(", .rank = 4, .alpha = 4}, "--targets attn("},
        {{.targets = "self_attn", .rank = 4, .alpha = 4}, "--text-encoder-lr"},
        {{.targets = "attn", .rank = 0, .alpha = 4}, "--rank"},
        {{.targets = "attn", .rank = -3, .alpha = 4}, "--rank"},
        {{.targets = "attn", .rank = 1025, .alpha = 4}, "--rank 1025: goes up to 1024"},
        {{.targets = "attn", .rank = 4, .alpha = 0}, "--alpha"},
        {{.targets = "attn", .rank = 4, .alpha = (double)NAN}, "--alpha"},
        {{.targets = "attn", .rank = 4, .alpha = (double)INFINITY}, "--alpha"},
        {{.targets = "attn", .rank = 4, .alpha = 4, .conv_rank = 4}, "--conv-rank"},
        {{.targets = "full", .rank = 4, .alpha = 4, .conv_rank = -1}, "--conv-rank"},
        {{.targets = "full", .rank = 4, .alpha = 4, .conv_alpha = -1}, "--conv-alpha"},
        {{.rank = 4, .alpha = 4, .block_dims = "4,4"}, "--block-dims 4,4: needs 25 numbers"},
        {{.rank = 4, .alpha = 4, .conv_block_dims = "4;4"}, "--conv-block-dims"},
        {{.rank = 4, .alpha = 4, .block_dims = "1,1,1,1,1,1,1,1,1,1,1,1,1.5,1,1,1,1,1,1,1,1,1,1,1,1"}, "1.5 is no rank"},
        {{.rank = 4, .alpha = 4, .block_dims = "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"}, "no module is left"},
        {{.rank = 4, .alpha = 4, .down_lr_weight = "cosin"}, "--down-lr-weight cosin: neither 12 numbers"},
        {{.rank = 4, .alpha = 4, .up_lr_weight = "linear+x"}, "--up-lr-weight"},
        {{.rank = 4, .alpha = 4, .mid_lr_weight = "1,1"}, "--mid-lr-weight"},
        {{.rank = 4, .alpha = 4, .module_rank = {no_number, 1}}, "--module-rank attn: is not of the form REGEX=NUMBER"},
        {{.rank = 4, .alpha = 4, .module_rank = {half_a_rank, 1}}, "2.5 is not a whole number"},
        {{.rank = 4, .alpha = 4, .module_lr = {no_regex, 1}}, "--module-lr attn(=2: no regular expression"},
        {{.rank = 4, .alpha = 4, .module_alpha = {no_alpha, 1}}, "--module-alpha"},
        {{.kind = "glora", .rank = 4, .alpha = 4, .rank_stabilised = true}, "--rs-lora: only for the kinds"},
        {{.kind = "oft", .rank = 4, .alpha = 4, .trained_scalar = true}, "--use-scalar: only for the kinds"},
        {{.kind = "loha", .rank = 4, .alpha = 4, .init = ADAPTER_INIT_NORMAL}, "--init: only for the kinds"},
        {{.kind = "lokr", .rank = 4, .alpha = 4, .up_ratio = {16, 16}}, "--loraplus-lr-ratio: only for the kinds"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error err = {0};
        assert_null(adapter_create(&cases[i].options, small_table, cpu, &err));
        if (!strstr(err.text, cases[i].says)) fail_msg("case %zu: \"%s\" does not say %s", i, err.text, cases[i].says);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_targets),       cmocka_unit_test(test_parameters),        cmocka_unit_test(test_convolution_ranks),
        cmocka_unit_test(test_blocks),        cmocka_unit_test(test_settings_by_block), cmocka_unit_test(test_settings_by_expression),
        cmocka_unit_test(test_normal_values), cmocka_unit_test(test_initial_values),    cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_order),         cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
