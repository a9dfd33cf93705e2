/* New adapters: which modules the targets choose, how they begin, what is refused. */
#include "lora/adapter.h"
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
        {{.targets = NULL}, 192, 0},
        {{.kind = "locon"}, 282, 0},
        {{.conv_rank = 2}, 282, 0},
        {{.targets = "attn2\\.to_k"}, 16, 0},
        {{.targets = "(to_k|to_v|ff\\.net\\.2)$", .train_text_encoder = true}, 80, 0},
        {{.targets = "^down_blocks\\.0\\."}, 31, 0},
        {{.targets = "^unet\\.mid_block\\..*conv"}, 4, 0},
        {{.targets = "text_encoder.*layers\\.1?1\\.mlp", .train_text_encoder = true}, 0, 4},
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
        assert_int_equal(adapter_tensor_count(a), 2 * (unet + text));
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
    static const struct {
        adapter_options options;
        const char *says;
    } cases[] = {
        {{.targets = "nothing_like_it", .rank = 4, .alpha = 4}, "--targets nothing_like_it"},
        {{.targets = "attn(", .rank = 4, .alpha = 4}, "--targets attn("},
        {{.targets = "self_attn", .rank = 4, .alpha = 4}, "--text-encoder-lr"},
        {{.targets = "attn", .rank = 0, .alpha = 4}, "--rank"},
        {{.targets = "attn", .rank = -3, .alpha = 4}, "--rank"},
        {{.targets = "attn", .rank = 4, .alpha = 0}, "--alpha"},
        {{.targets = "attn", .rank = 4, .alpha = (double)NAN}, "--alpha"},
        {{.targets = "attn", .rank = 4, .alpha = (double)INFINITY}, "--alpha"},
        {{.targets = "attn", .rank = 4, .alpha = 4, .conv_rank = 4}, "--conv-rank"},
        {{.targets = "full", .rank = 4, .alpha = 4, .conv_rank = -1}, "--conv-rank"},
        {{.targets = "full", .rank = 4, .alpha = 4, .conv_alpha = -1}, "--conv-alpha"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error err = {0};
        assert_null(adapter_create(&cases[i].options, small_table, cpu, &err));
        if (!strstr(err.text, cases[i].says)) fail_msg("case %zu: \"%s\" does not say %s", i, err.text, cases[i].says);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_targets),        cmocka_unit_test(test_parameters), cmocka_unit_test(test_convolution_ranks),
        cmocka_unit_test(test_initial_values), cmocka_unit_test(test_seeds),      cmocka_unit_test(test_order),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
