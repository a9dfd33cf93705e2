/* Adapters rewritten: every kind that LyCORIS makes as a full difference against LyCORIS' own outputs, the spellings there and back, ranks
   cut and sums, and what is refused. */
#define LYCORIS TEST_DATA "/lycoris/"
#define REFERENCE LYCORIS "reference.safetensors"

#include "base/file.h"
#include "convert/convert.h"
#include "convert/merge.h"
#include "tests/lora/module_run.h"

#include <unistd.h>

static const char *const FILES[] = {"locon",      "locon_tucker", "locon_rs",       "dora_input",       "dora_output", "loha",
                                    "loha_large", "loha_tucker",  "loha_dora",      "loha_tucker_dora", "lokr_full",   "lokr",
                                    "lokr_both",  "lokr_tucker",  "lokr_dora",      "lokr_tucker_dora", "ia3",         "ia3_input",
                                    "glora",      "oft",          "oft_constraint", "oft_rescaled",     "boft",        "boft_constraint",
                                    "full",       "norm"};
enum { FILE_COUNT = sizeof FILES / sizeof *FILES };

static const char *fixture(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, LYCORIS "%s.safetensors", name);
    return path;
}

static const convert_options DEFAULTS = {.type = DTYPE_COUNT};

static void convert(const char *in, const char *out, const convert_options *o) {
    convert_report report = {0};
    error err = {""};
    if (!convert_adapter(in, out, o, &report, &err)) fail_msg("%s", err.text);
    report_free(&report);
}

static void refused(const char *in, const char *out, const convert_options *o, const char *text) {
    convert_report report = {0};
    error err = {""};
    if (convert_adapter(in, out, o, &report, &err)) fail_msg("%s was not refused (%s)", in, text);
    if (!strstr(err.text, text) || !strstr(err.text, "lora_")) fail_msg("%s: \"%s\" does not say \"%s\" of a module", in, err.text, text);
    report_free(&report);
    assert_false(file_exists(out));
}

/* ---- Full differences ---- */

static safetensors results;
static double worst;

static void check_output(const char *key, adapter *a, adapter_stack *stack) {
    (void)a;
    error err;
    run r = run_record(key, stack);
    if (!r.y) fail_msg("%s", tape_error(r.tape));
    plan *p = run_plan(&r);
    assert_true(plan_run(p, &err));
    char name[256];
    snprintf(name, sizeof name, "y/%s", key);
    const safetensors_tensor *t = safetensors_find(&results, name);
    float *right = safetensors_read_f32(&results, t, NULL), *got = memory_new(t->elements, sizeof *got);
    float *moved = channels_moved(right, t->rank, t->dims, true);
    assert_true(tensor_read(on, r.y, got, &err));
    double e = difference(got, moved, t->elements);
    if (!(e <= 5e-6)) fail_msg("%s: relative error %g", key, e);
    worst = e > worst ? e : worst;
    free(right);
    free(got);
    free(moved);
    run_free(&r, p);
}

/* A whole adapter as differences, through a file, for the model in memory. */
static void write_full(const char *name, const char *out) {
    error err;
    adapter *a = adapter_load(fixture(name), table, on, false, NULL, &err);
    if (!a) fail_msg("%s", err.text);
    draft d = {0};
    for (int i = 0; i < a->module_count; i++) {
        change c;
        assert_int_equal(change_needs_model(&a->modules[i]), a->modules[i].kind->apply || a->modules[i].tensors[ADAPTER_MAGNITUDE].value);
        if (!change_compute(a, &a->modules[i], &model, &c, &err)) fail_msg("%s: %s", name, err.text);
        recast_full(&d, a->modules[i].info, &c, DTYPE_F32);
    }
    spell_options o = {.format = SPELL_KOHYA, .type = DTYPE_COUNT};
    if (!spell_write(&d, out, &o, &err)) fail_msg("%s: %s", name, err.text);
    draft_free(&d);
    adapter_free(a);
}

static void test_full(void **state) {
    (void)state;
    const char *out = "test_convert_full.safetensors";
    for (int i = 0; i < FILE_COUNT; i++) {
        error err;
        char path[512];
        write_full(FILES[i], out);
        snprintf(path, sizeof path, LYCORIS "%s_results.safetensors", FILES[i]);
        if (!safetensors_open(&results, path, &err)) fail_msg("%s", err.text);
        adapter *a = adapter_load(out, table, on, false, NULL, &err);
        if (!a) fail_msg("%s", err.text);
        for (int k = 0; k < a->module_count; k++) assert_true(a->modules[k].kind->difference == NULL);
        adapter_stack *stack = adapter_stack_create();
        adapter_stack_add(stack, a, 1, 1);
        assert_true(for_each_module(a, check_output, stack) > 0);
        adapter_stack_free(stack);
        safetensors_close(&results);
    }
    remove(out);
    print_message("worst output %.1e\n", worst);
}

/* ---- Spellings ---- */

/* All tensors of a in b, bit for bit; whole numbers may have become fp32. */
static void same_tensors(const char *a, const char *b) {
    error err;
    safetensors x, y;
    assert_true(safetensors_open(&x, a, &err));
    if (!safetensors_open(&y, b, &err)) fail_msg("%s", err.text);
    assert_int_equal(x.count, y.count);
    for (size_t i = 0; i < x.count; i++) {
        const safetensors_tensor *t = &x.tensors[i], *u = safetensors_find(&y, t->name);
        if (!u || u->rank != t->rank || memcmp(u->dims, t->dims, (size_t)t->rank * sizeof *t->dims))
            fail_msg("%s: %s is gone, or of another shape", b, t->name);
        if (t->type != DTYPE_I64) assert_int_equal(t->type, u->type);
        float *p = safetensors_read_f32(&x, t, NULL), *q = safetensors_read_f32(&y, u, NULL);
        if (memcmp(p, q, t->elements * sizeof *p)) fail_msg("%s: %s has other values", b, t->name);
        free(p);
        free(q);
    }
    safetensors_close(&x);
    safetensors_close(&y);
}

static void remove_peft(const char *folder) {
    static const char *const names[] = {"unet/adapter_config.json", "unet/adapter_model.safetensors", "text_encoder/adapter_config.json",
                                        "text_encoder/adapter_model.safetensors"};
    char path[512];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        remove(path);
    }
    snprintf(path, sizeof path, "%s/unet", folder);
    rmdir(path);
    snprintf(path, sizeof path, "%s/text_encoder", folder);
    rmdir(path);
    rmdir(folder);
}

static void test_kohya_again(void **state) {
    (void)state;
    const char *out = "test_convert_again.safetensors";
    for (int i = 0; i < FILE_COUNT; i++) {
        if (strcmp(FILES[i], "glora") == 0) continue; /* gets the naming that webui reads */
        convert(fixture(FILES[i]), out, &DEFAULTS);
        same_tensors(fixture(FILES[i]), out);
    }
    remove(out);
}

/* GLoRA in the naming of current LyCORIS becomes the older one without a scale, and does the same. */
static void test_glora(void **state) {
    (void)state;
    const char *out = "test_convert_glora.safetensors";
    error err;
    convert(fixture("glora"), out, &DEFAULTS);
    adapter *before = adapter_load(fixture("glora"), table, on, false, NULL, &err),
            *after = adapter_load(out, table, on, false, NULL, &err);
    assert_true(before && after && before->module_count == after->module_count);
    for (int i = 0; i < after->module_count; i++) {
        const adapter_module *m = &after->modules[i];
        change x, y;
        assert_string_equal(m->kind->name, "glora");
        assert_true(m->scale == 1 && m->tensors[0].dims[0] == m->rank && strstr(m->tensors[0].name, ".a1.weight"));
        assert_true(change_compute(before, &before->modules[i], &model, &x, &err) && change_compute(after, m, &model, &y, &err));
        double e = difference(y.weight, x.weight, (size_t)(x.rows * x.columns));
        if (!(e <= 1e-6)) fail_msg("%s: relative error %g", m->info->flat, e);
        factors f; /* and with the model it is a LoRA of twice the rank */
        assert_true(change_factors(after, m, &f, &err));
        assert_int_equal(f.rank, 2 * m->rank);
        for (int64_t o = 0; o < f.rows; o++)
            for (int64_t c = 0; c < f.columns; c++) {
                double sum = 0;
                for (int64_t r = 0; r < f.rank; r++) sum += (double)f.up[o * f.rank + r] * (double)f.down[r * f.columns + c];
                assert_true(fabs(sum * f.scale - (double)x.weight[o * f.columns + c]) < 1e-5);
            }
        factors_free(&f);
        change_free(&x);
        change_free(&y);
    }
    adapter_free(before);
    adapter_free(after);
    remove(out);
}

static void test_peft_and_back(void **state) {
    static const char *const files[] = {"locon", "locon_rs", "dora_output", "loha", "loha_tucker", "lokr", "lokr_full", "ia3_input"};
    (void)state;
    const char *folder = "test_convert_peft", *out = "test_convert_back.safetensors";
    convert_options peft = DEFAULTS;
    peft.format = SPELL_PEFT;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        remove_peft(folder);
        convert(fixture(files[i]), folder, &peft);
        convert(folder, out, &DEFAULTS);
        if (strcmp(files[i], "lokr_full") != 0 && strcmp(files[i], "ia3_input") != 0) same_tensors(fixture(files[i]), out);
    }
    remove_peft(folder);
    remove(out);
}

/* The LoRA of a module as one matrix. */
static float *product_of(const adapter *a, const adapter_module *m, size_t *count) {
    change c;
    error err;
    if (!change_compute(a, m, NULL, &c, &err)) fail_msg("%s", err.text);
    *count = (size_t)(c.rows * c.columns);
    free(c.bias);
    return c.weight;
}

/* Every module of a does what the weighted sum of b and c does. */
static void same_sum(const char *a, const char *b, double weight_b, const char *c, double weight_c, double limit) {
    error err;
    source_base base;
    source s[3] = {0};
    assert_true(source_base_open(&base, NULL, 1, &err));
    const char *const paths[] = {a, b, c};
    const double factors_of[] = {0, weight_b, weight_c};
    for (int i = 0; i < 3 && paths[i]; i++)
        if (!source_open(&s[i], &base, paths[i], &err)) fail_msg("%s", err.text);
    assert_true(s[0].adapter->module_count >= s[1].adapter->module_count);
    for (int k = 0; k < s[0].adapter->module_count; k++) {
        const adapter_module *m = &s[0].adapter->modules[k];
        size_t n, other;
        float *got = product_of(s[0].adapter, m, &n), *sum = memory_new(n, sizeof *sum);
        for (int i = 1; i < 3 && paths[i]; i++) {
            const adapter_module *part = adapter_find_module(s[i].adapter, m->info->part, m->info->name);
            float *values = part ? product_of(s[i].adapter, part, &other) : NULL;
            for (size_t e = 0; values && e < n; e++) sum[e] += (float)factors_of[i] * values[e];
            free(values);
        }
        double e = difference(got, sum, n);
        if (!(e <= limit)) fail_msg("%s: %s: relative error %g", a, m->info->flat, e);
        free(got);
        free(sum);
    }
    for (int i = 0; i < 3; i++)
        if (paths[i]) source_close(&s[i]);
    source_base_close(&base);
}

static void test_diffusers_and_back(void **state) {
    (void)state;
    const char *there = "test_convert_diffusers.safetensors", *out = "test_convert_back.safetensors";
    convert_options o = DEFAULTS;
    o.format = SPELL_DIFFUSERS;
    convert(fixture("locon"), there, &o);
    convert(there, out, &DEFAULTS);
    same_sum(out, fixture("locon"), 1, NULL, 0, 1e-6);
    same_sum(there, out, 1, NULL, 0, 0);
    remove(there);
    remove(out);
}

/* Other programs' spellings become kohya's, and do the same. */
static void test_foreign_spellings(void **state) {
    (void)state;
    static const char *const names[] = {"kohya.safetensors", "ldm.safetensors", "processor.safetensors", "diffusers", "peft"};
    const char *out = "test_convert_kohya.safetensors";
    for (int i = 0; i < 5; i++) {
        char path[512];
        snprintf(path, sizeof path, TEST_DATA "/lora/%s", names[i]);
        convert(path, out, &DEFAULTS);
        same_sum(out, path, 1, NULL, 0, 1e-7);
        error err;
        safetensors st;
        assert_true(safetensors_open(&st, out, &err));
        for (size_t k = 0; k < st.count; k++)
            assert_true(!strncmp(st.tensors[k].name, "lora_unet_", 10) || !strncmp(st.tensors[k].name, "lora_te_text_model_", 19));
        assert_non_null(safetensors_metadata(&st, "sshs_model_hash"));
        assert_non_null(safetensors_metadata(&st, "ss_network_module"));
        safetensors_close(&st);
    }
    remove(out);
}

static void test_types(void **state) {
    (void)state;
    const char *half = "test_convert_half.safetensors", *again = "test_convert_again.safetensors";
    convert_options o = DEFAULTS;
    o.type = DTYPE_F16;
    convert(fixture("loha"), half, &o);
    convert(half, again, &DEFAULTS);
    same_tensors(half, again);
    o.type = DTYPE_F32;
    convert(half, again, &o);
    same_sum(again, half, 1, NULL, 0, 0);
    same_sum(half, fixture("loha"), 1, NULL, 0, 2e-3);
    remove(half);
    remove(again);
}

/* ---- Ranks ---- */

static double tail_of(const float *weight, int64_t rows, int64_t columns, int64_t rank) {
    error err;
    svd all;
    if (!svd_matrix(weight, rows, columns, 0, &all, &err)) fail_msg("%s", err.text);
    double cut = 0, whole = 0;
    for (int64_t i = 0; i < all.rank; i++) {
        whole += (double)all.s[i] * (double)all.s[i];
        if (i >= rank) cut += (double)all.s[i] * (double)all.s[i];
    }
    svd_free(&all);
    return sqrt(cut / whole);
}

static void check_rank(const char *name, int64_t rank, int64_t conv_rank) {
    const char *out = "test_convert_rank.safetensors";
    convert_options o = DEFAULTS;
    o.kind = TARGET_LORA;
    o.rank = (rank_choice){.most = rank, .conv_most = conv_rank};
    convert_report report = {0};
    error err = {""};
    if (!convert_adapter(fixture(name), out, &o, &report, &err)) fail_msg("%s", err.text);
    source_base base;
    source before, after;
    assert_true(source_base_open(&base, NULL, 1, &err) && source_open(&before, &base, fixture(name), &err));
    if (!source_open(&after, &base, out, &err)) fail_msg("%s", err.text);
    assert_int_equal(before.adapter->module_count, after.adapter->module_count);
    for (int k = 0; k < before.adapter->module_count; k++) {
        const adapter_module *m = &before.adapter->modules[k], *l = &after.adapter->modules[k];
        int64_t most = l->info->kernel > 1 ? conv_rank : rank;
        size_t n;
        float *whole = product_of(before.adapter, m, &n), *low = product_of(after.adapter, l, &n);
        assert_string_equal(l->kind->name, "lora");
        assert_true(l->rank <= most);
        double best = tail_of(whole, m->info->out, (int64_t)n / m->info->out, l->rank), e = difference(low, whole, n);
        if (!(fabs(e - best) <= 1e-4 * best + 2e-6)) fail_msg("%s: %s: error %g, the best is %g", name, m->info->flat, e, best);
        for (int i = 0; i < report.loss_count; i++)
            if (strcmp(report.losses[i].flat, m->info->flat) == 0) assert_true(fabs(report.losses[i].loss.error - e) <= 1e-4 * e + 2e-6);
        free(whole);
        free(low);
    }
    source_close(&before);
    source_close(&after);
    source_base_close(&base);
    report_free(&report);
    remove(out);
}

static void test_ranks(void **state) {
    (void)state;
    check_rank("locon", 2, 1);
    check_rank("locon_tucker", 2, 2);
    check_rank("loha", 2, 3);
    check_rank("lokr", 3, 2);
    check_rank("full", 4, 4);
    check_rank("locon", 64, 64); /* nothing to cut */
}

/* sd-scripts' index rules, whose result has one more. */
static void test_rules(void **state) {
    (void)state;
    const float s[] = {8, 4, 2, 1, 0.5f, 0.25f};
    rank_choice c = {.rule = RANK_RATIO, .parameter = 5};
    assert_int_equal(rank_choose(&c, 16, s, 6, sqrt(85.3125)), 4); /* three above 1.6 */
    assert_int_equal(rank_choose(&c, 2, s, 6, sqrt(85.3125)), 2);
    c = (rank_choice){.rule = RANK_CUMULATIVE, .parameter = 0.8};
    assert_int_equal(rank_choose(&c, 16, s, 6, sqrt(85.3125)), 4); /* 14 of 15.75 at the third */
    c = (rank_choice){.rule = RANK_FROBENIUS, .parameter = 0.9};
    assert_int_equal(rank_choose(&c, 16, s, 6, sqrt(85.3125)), 3); /* 80 of 85.3 at the second */
    assert_int_equal(rank_choose(&c, 2, s, 3, sqrt(85.3125)), 2);  /* the rest is not needed for that */
    const float zeros[] = {0, 0, 0};
    assert_int_equal(rank_choose(&c, 16, zeros, 3, 0), 1);
    c = (rank_choice){.most = 4};
    assert_int_equal(rank_choose(&c, 4, s, 6, sqrt(85.3125)), 4);
}

static void test_cut(void **state) {
    (void)state;
    const char *out = "test_convert_cut.safetensors";
    convert_options o = DEFAULTS;
    o.cut_rank = 2;
    convert(fixture("locon"), out, &o);
    error err;
    safetensors x, y;
    assert_true(safetensors_open(&x, fixture("locon"), &err) && safetensors_open(&y, out, &err));
    for (size_t i = 0; i < x.count; i++) {
        const safetensors_tensor *t = &x.tensors[i], *u = safetensors_find(&y, t->name);
        assert_non_null(u);
        float *p = safetensors_read_f32(&x, t, NULL), *q = safetensors_read_f32(&y, u, NULL);
        bool up = strstr(t->name, "lora_up") != NULL, down = strstr(t->name, "lora_down") != NULL;
        assert_int_equal(u->elements, up || down ? t->elements / 3 * 2 : 1);
        for (size_t e = 0; e < u->elements; e++) assert_true(q[e] == (up ? p[e / 2 * 3 + e % 2] : p[e]));
        free(p);
        free(q);
    }
    safetensors_close(&x);
    safetensors_close(&y);
    remove(out);
}

/* ---- Sums ---- */

static void merge(const char *a, float weight_a, const char *b, float weight_b, const convert_options *o, const char *out) {
    adapter_spec specs[] = {{.unet_weight = weight_a, .text_weight = weight_a}, {.unet_weight = weight_b, .text_weight = weight_b}};
    specs[0].path = memory_string(a);
    specs[1].path = memory_string(b);
    convert_report report = {0};
    error err = {""};
    if (!merge_adapters(specs, 2, out, o, &report, &err)) fail_msg("%s", err.text);
    report_free(&report);
    free(specs[0].path);
    free(specs[1].path);
}

static void test_merge(void **state) {
    (void)state;
    char locon[512], rs[512], loha[512];
    snprintf(locon, sizeof locon, "%s", fixture("locon"));
    snprintf(rs, sizeof rs, "%s", fixture("locon_rs"));
    snprintf(loha, sizeof loha, "%s", fixture("loha"));
    const char *out = "test_convert_merged.safetensors";
    error err;
    merge(locon, 0.7f, rs, -1.3f, &DEFAULTS, out);
    same_sum(out, locon, 0.7f, rs, -1.3f, 1e-6);
    safetensors st;
    assert_true(safetensors_open(&st, out, &err));
    const safetensors_tensor *down =
        safetensors_find(&st, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight");
    assert_int_equal(down->dims[0], 7);
    safetensors_close(&st);
    merge(locon, 0.5f, loha, 2, &DEFAULTS, out);
    same_sum(out, locon, 0.5f, loha, 2, 1e-6);
    assert_true(safetensors_open(&st, out, &err));
    assert_non_null(safetensors_find(&st, "lora_unet_down_blocks_0_resnets_0_conv1.diff"));
    safetensors_close(&st);
    remove(out);
}

/* ---- Refused ---- */

static void test_refused(void **state) {
    (void)state;
    const char *out = "test_convert_refused.safetensors", *folder = "test_convert_refused";
    convert_options full = DEFAULTS, low = DEFAULTS, peft = DEFAULTS, diffusers = DEFAULTS, cut = DEFAULTS;
    full.kind = TARGET_FULL;
    low.kind = TARGET_LORA;
    peft.format = SPELL_PEFT;
    diffusers.format = SPELL_DIFFUSERS;
    cut.cut_rank = 2;
    static const char *const readers[] = {"ia3", "glora", "oft", "boft", "dora_input"};
    for (int i = 0; i < 5; i++) refused(fixture(readers[i]), out, &full, "--model");
    refused(fixture("loha"), out, &low, "--rank N");
    refused(fixture("loha"), out, &diffusers, "--kind lora --rank N");
    refused(fixture("locon_tucker"), out, &diffusers, "--kind lora");
    refused(fixture("loha"), out, &cut, "cut");
    refused(fixture("dora_input"), folder, &peft, "norms of inputs");
    refused(fixture("oft"), folder, &peft, "PEFT cannot hold it");
    refused(fixture("norm"), folder, &peft, "norm");
    refused(fixture("full"), folder, &peft, "--kind lora --rank N");
    refused(fixture("lokr_dora"), folder, &peft, "no DoRA");
    low.kind = TARGET_SAME;
    low.rank.most = 2;
    refused(fixture("lokr"), out, &low, "--kind lora");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_full),
                                       cmocka_unit_test(test_kohya_again),
                                       cmocka_unit_test(test_glora),
                                       cmocka_unit_test(test_peft_and_back),
                                       cmocka_unit_test(test_diffusers_and_back),
                                       cmocka_unit_test(test_foreign_spellings),
                                       cmocka_unit_test(test_types),
                                       cmocka_unit_test(test_ranks),
                                       cmocka_unit_test(test_rules),
                                       cmocka_unit_test(test_cut),
                                       cmocka_unit_test(test_merge),
                                       cmocka_unit_test(test_refused)};
    return device_choose(0) ? cmocka_run_group_tests_name(device_name, tests, setup, teardown) : -1;
}
