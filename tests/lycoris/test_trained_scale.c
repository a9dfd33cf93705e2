/* What a file says of a rank-stabilised adapter, and of one whose change a trained scalar multiplies: read again, the file does what the
   adapter did while it was trained, and its gradients are those of the training. */
#define LYCORIS TEST_DATA "/lycoris/"
#define REFERENCE LYCORIS "reference.safetensors"

#include "base/random.h"
#include "lora/save.h"
#include "lora/start.h"
#include "tests/lora/module_run.h"
#include "tests/support/validation.h"

#define SAVED "test_trained_scale.safetensors"

static const struct {
    const char *name;
    adapter_options options;
    double scale; /* of the linear modules, alpha being 6; 0: is not looked at */
} CASES[] = {
    {"lora", {.kind = "lora", .targets = "full", .rank = 4, .rank_stabilised = true, .trained_scalar = true}, 3},
    {"lora, every rank", {.kind = "lora", .targets = "full", .rank = 4, .conv_rank = 2, .rank_stabilised = true}, 3},
    {"lora, tucker", {.kind = "locon", .targets = "full", .rank = 3, .tucker = true, .trained_scalar = true}, 2},
    {"dora", {.kind = "lora", .targets = "full", .rank = 4, .rank_stabilised = true, .trained_scalar = true, .dora = true}, 3},
    {"loha", {.kind = "loha", .targets = "full", .rank = 2, .rank_stabilised = true, .trained_scalar = true}, 0},
    {"loha, tucker", {.kind = "loha", .targets = "full", .rank = 2, .tucker = true, .trained_scalar = true}, 3},
    {"lokr", {.kind = "lokr", .targets = "full", .rank = 1, .rank_stabilised = true, .trained_scalar = true}, 6},
    {"lokr, both", {.kind = "lokr", .targets = "full", .rank = 1, .factor = 4, .decompose_both = true, .trained_scalar = true}, 6},
    {"lokr, full", {.kind = "lokr", .targets = "full", .rank = 4, .full_matrix = true, .rank_stabilised = true, .trained_scalar = true}, 1},
    {"lokr, dora", {.kind = "lokr", .targets = "full", .rank = 1, .dora = true, .trained_scalar = true}, 6},
    {"pissa", {.kind = "lora", .targets = "full", .rank = 4, .conv_rank = 2, .rank_stabilised = true, .init = ADAPTER_INIT_PISSA}, 3},
    {"pissa, dora", {.kind = "lora", .targets = "full", .rank = 3, .dora = true, .init = ADAPTER_INIT_PISSA}, 2},
    {"glora", {.kind = "glora", .targets = "full", .rank = 2, .trained_scalar = true}, 1},
};
enum { CASE_COUNT = sizeof CASES / sizeof *CASES };

static const char *case_name;

static float *random_values(int64_t n, uint64_t stream) {
    float *values = memory_new((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = (float)random_uniform(3, stream, (uint64_t)i) - 0.4f;
    return values;
}

/* Any numbers do as singular vectors; of one module there are fewer than the rank. */
static void begin(const adapter *a) {
    for (int i = 0; i < a->module_count; i++) {
        const adapter_module *m = &a->modules[i];
        int64_t count = i == 0 ? m->rank - 1 : m->rank, in = tensor_count(m->tensors[0].value) / m->rank;
        float *u = random_values(m->info->out * count, 1), *vt = random_values(count * in, 2), s[8] = {4, 3, 2, 1};
        assert_true(adapter_start_set(a, m, count, u, s, vt, NULL));
        free(u);
        free(vt);
    }
}

static adapter *make(const adapter_options *wanted) {
    error err;
    adapter_options o = *wanted;
    o.alpha = 6;
    o.train_text_encoder = true;
    adapter *a = adapter_create(&o, table, on, &err);
    if (!a) fail_msg("%s: %s", case_name, err.text);
    if (o.init == ADAPTER_INIT_PISSA) begin(a);
    return a;
}

static float *values_of(const tensor *t) {
    float *values = memory_new((size_t)tensor_count(t), sizeof *values);
    assert_true(tensor_read(on, t, values, NULL));
    return values;
}

/* Everything random, as if trained. DoRA's magnitudes stay near the norms that they begin with. */
static void disturb(adapter *a) {
    for (int i = 0; i < adapter_tensor_count(a); i++) {
        const adapter_tensor *t = adapter_tensor_at(a, i, NULL);
        float *values = values_of(t->value);
        for (int64_t j = 0; j < tensor_count(t->value); j++) values[j] += 0.5f * (float)(random_uniform(7, (uint64_t)i, (uint64_t)j) - 0.3);
        assert_true(tensor_write(on, t->value, values, NULL));
        free(values);
    }
}

/* The module's output; the gradients are in its tensors. */
static float *run_module(const char *key, adapter *a, adapter_stack *stack) {
    error err;
    adapter_stack_set_weights(stack, a, 1, 1);
    run r = run_record(key, stack);
    if (!r.y) fail_msg("%s: %s", case_name, tape_error(r.tape));
    tensor *loss = op_mse(r.tape, r.y, r.target), *seed = tape_input(r.tape, "seed", DTYPE_F32, 1, (int64_t[]){1});
    tape_backward(r.tape, loss, seed, false);
    plan *p = run_plan(&r);
    assert_true(tensor_write(on, r.target, r.target_values, &err) && tensor_write(on, seed, (float[]){1}, &err) && plan_run(p, &err));
    float *y = values_of(r.y);
    run_free(&r, p);
    return y;
}

static void expect_near(const char *what, const char *key, const float *a, const float *b, int64_t n, double most) {
    double e = difference(a, b, (size_t)n);
    if (!(e <= most)) fail_msg("%s: %s of %s: relative error %g", case_name, what, key, e);
}

/* Of PiSSA the file's factors have what they began with behind them. gradient: the file's; its half of the trained factor is left. With
   taps a factor's rows are behind each other for each tap. */
static void first_half(const adapter_module *m, int index, float *gradient, int64_t n) {
    int64_t r = m->rank, taps = m->tensors[0].value->rank == 3 ? m->tensors[0].value->dim[0] : 1;
    int64_t chunk = index == 1 ? r : index == 0 ? n / taps : n;
    for (int64_t at = 0; index < 2 && at < n / chunk; at++)
        memmove(gradient + at * chunk, gradient + 2 * at * chunk, (size_t)chunk * sizeof *gradient);
}

/* trained: with the scalar s; read: the file's, whose tensor p is s times the trained one. So dL/d trained = s dL/dp, and
   dL/ds = <dL/dp, trained>. */
static void compare_gradients(const char *key, const adapter_module *trained, const adapter_module *read) {
    const tensor *scalar = trained->tensors[ADAPTER_SCALAR].value;
    double expected = 0;
    float s = 1, slope = 0;
    if (scalar) assert_true(tensor_read(on, scalar, &s, NULL) && tensor_read(on, scalar->grad, &slope, NULL));
    for (int i = 0; i < ADAPTER_MODULE_TENSORS; i++) {
        const tensor *t = trained->tensors[i].value, *p = read->tensors[i].value;
        if (!t || i == ADAPTER_SCALAR) continue;
        bool scaled = scalar && trained->kind->scaled & 1u << i;
        int64_t n = tensor_count(t);
        assert_non_null(p);
        assert_int_equal(trained->start[0] && i < 2 ? 2 * n : n, tensor_count(p));
        float *value = values_of(t), *g = values_of(t->grad), *h = values_of(p->grad);
        if (trained->start[0]) first_half(trained, i, h, n);
        for (int64_t j = 0; j < n && scaled; j++) {
            expected += (double)h[j] * (double)value[j];
            h[j] *= s;
        }
        expect_near(trained->tensors[i].name, key, g, h, n, 1e-4);
        free(value);
        free(g);
        free(h);
    }
    if (scalar && !(fabs((double)slope - expected) <= 1e-4 * fabs(expected) + 1e-7))
        fail_msg("%s: gradient of the scalar of %s is %g, not %g", case_name, key, (double)slope, expected);
}

static adapter *again;
static adapter_stack *again_stack;

static void check_module(const char *key, adapter *a, adapter_stack *stack) {
    checkpoint_part part = strncmp(key, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
    const char *path = strchr(key, '/') + 1;
    const adapter_module *m = adapter_find_module(a, part, path), *n = adapter_find_module(again, part, path);
    assert_non_null(n);
    float *y = run_module(key, a, stack), *z = run_module(key, again, again_stack);
    run r = run_record(key, stack);
    expect_near("output", key, z, y, tensor_count(r.y), 1e-5);
    plan *p = run_plan(&r);
    run_free(&r, p);
    compare_gradients(key, m, n);
    free(y);
    free(z);
}

static void files_do_what_was_trained(void **state) {
    (void)state;
    for (int i = 0; i < CASE_COUNT; i++) {
        error err;
        case_name = CASES[i].name;
        adapter *a = make(&CASES[i].options);
        disturb(a);
        if (!adapter_save(a, SAVED, &(adapter_save_options){.type = DTYPE_F32}, &err)) fail_msg("%s: %s", case_name, err.text);
        adapter_report report;
        if (!(again = adapter_load(SAVED, table, on, true, &report, &err))) fail_msg("%s: %s", case_name, err.text);
        assert_int_equal(report.unapplied_count, 0);
        adapter_report_free(&report);
        for (int j = 0; j < a->module_count; j++) {
            bool looked_at = CASES[i].scale > 0 && a->modules[j].info->kernel == 1;
            if (looked_at && !(fabs(a->modules[j].scale / CASES[i].scale - 1) < 1e-12))
                fail_msg("%s: scale %g, not %g", case_name, a->modules[j].scale, CASES[i].scale);
            assert_true((a->modules[j].tensors[ADAPTER_SCALAR].value != NULL) == CASES[i].options.trained_scalar);
            assert_null(again->modules[j].tensors[ADAPTER_SCALAR].value);
        }
        adapter_stack *stack = adapter_stack_create();
        again_stack = adapter_stack_create();
        adapter_stack_add(stack, a, 1, 1);
        adapter_stack_add(again_stack, again, 1, 1);
        assert_int_equal(for_each_module(a, check_module, stack), a->module_count);
        adapter_stack_free(stack);
        adapter_stack_free(again_stack);
        remove(SAVED);
    }
}

/* Though every factor begins away from 0. */
static void nothing_is_changed_at_first(void **state) {
    (void)state;
    for (int i = 0; i < CASE_COUNT; i++) {
        bool pissa = CASES[i].options.init == ADAPTER_INIT_PISSA;
        if (!CASES[i].options.trained_scalar && !pissa) continue;
        case_name = CASES[i].name;
        adapter *a = make(&CASES[i].options);
        for (int j = 0; j < adapter_tensor_count(a); j++) {
            const adapter_module *m;
            const adapter_tensor *t = adapter_tensor_at(a, j, &m);
            float *values = values_of(t->value);
            double sum = 0;
            for (int64_t k = 0; k < tensor_count(t->value); k++) sum += fabs((double)values[k]);
            assert_true(pissa || (sum > 0) == (t->value != m->tensors[ADAPTER_SCALAR].value));
            free(values);
        }
        adapter_stack *stack = adapter_stack_create(), *bare = adapter_stack_create();
        adapter_stack_add(stack, a, 1, 1);
        const char *key = "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
        float *y = run_module(key, a, stack), *z = run_module(key, a, bare);
        expect_near("output", key, y, z, 2 * 5 * 8, 1e-6);
        free(y);
        free(z);
        adapter_stack_free(stack);
        adapter_stack_free(bare);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(files_do_what_was_trained), cmocka_unit_test(nothing_is_changed_at_first)};
    validation_begin();
    int failed = 0;
    for (int i = 0; device_choose(i); i++) failed += cmocka_run_group_tests_name(device_name, tests, setup, teardown);
    return validation_end(failed);
}
