/* What changes from step to step: one layer's output and gradients with dropouts and in a DyLoRA against PyTorch with the same choices
   (tests/reference/make_stepwise_fixtures.py), on the CPU and on the software Vulkan device; how often what is chosen; and max-norm
   regularisation of every kind that has it. */
#define REFERENCE TEST_DATA "/lycoris/reference.safetensors"

#include "base/random.h"
#include "lora/stepwise.h"
#include "tests/lora/module_run.h"
#include "tests/support/validation.h"

/* ---- one layer ---- */

static const struct layer_case {
    const char *name;
    adapter_options options;
    int64_t update;
    uint64_t batch;
} CASES[] = {
    {"dylora", {.kind = "dylora", .rank = 8, .stepwise = {.block_size = 2}}, 3, 0},
    {"dylora_first", {.kind = "dylora", .rank = 8, .stepwise = {.block_size = 4}}, 6, 0},
    {"dylora_module", {.kind = "dylora", .rank = 8, .stepwise = {.block_size = 2, .module_dropout = 0.5}}, 1, 0},
    {"network", {.kind = "lora", .rank = 8, .stepwise = {.network_dropout = 0.3}}, 0, 5},
    {"rank", {.kind = "lora", .rank = 8, .stepwise = {.rank_dropout = 0.4}}, 2, 1},
    {"all", {.kind = "lora", .rank = 8, .stepwise = {.network_dropout = 0.2, .rank_dropout = 0.3, .module_dropout = 0.4}}, 4, 9},
    {"loha", {.kind = "loha", .rank = 2, .stepwise = {.rank_dropout = 0.3, .module_dropout = 0.4}}, 1, 2},
    {"lokr", {.kind = "lokr", .rank = 1, .factor = 2, .stepwise = {.rank_dropout = 0.3, .module_dropout = 0.4}}, 2, 3},
    {"full", {.kind = "full", .rank = 1, .stepwise = {.rank_dropout = 0.3}}, 0, 4},
    {"oft", {.kind = "oft", .rank = 4, .stepwise = {.module_dropout = 0.5}}, 3, 0},
    {"dora", {.kind = "lora", .rank = 2, .dora = true, .stepwise = {.module_dropout = 0.5}}, 4, 0},
};
enum { CASE_COUNT = sizeof CASES / sizeof *CASES };

static safetensors fixture;
static const struct layer_case *here;
static adapter *adapted;
static adapter_step step;

static void begin_step(tape *t) { adapter_step_begin(adapted, t, &step); }

static float *expected(const char *what, const char *name, size_t count) {
    char key[256];
    snprintf(key, sizeof key, "%s/%s/%s", here->name, what, name);
    const safetensors_tensor *t = safetensors_find(&fixture, key);
    if (!t) fail_msg("the fixture has no %s", key);
    assert_int_equal(t->elements, count);
    return safetensors_read_f32(&fixture, t, NULL);
}

static void write_values(adapter *a) {
    for (int i = 0; i < adapter_tensor_count(a); i++) {
        const adapter_tensor *x = adapter_tensor_at(a, i, NULL);
        size_t n = (size_t)adapter_tensor_elements(x);
        float *file = expected("value", x->name, n), *engine = memory_new(n, sizeof *engine);
        adapter_tensor_from_file(x, file, engine);
        assert_true(tensor_write(on, x->value, engine, NULL));
        free(file);
        free(engine);
    }
}

static void check_difference(const char *key, const float *got, const float *right, size_t count, double most) {
    double e = difference(got, right, count);
    if (!(e <= most)) fail_msg("%s: %s: relative error %g", here->name, key, e);
}

static void check_layer_gradients(const char *key) {
    checkpoint_part part = strncmp(key, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
    const adapter_module *m = adapter_find_module(adapted, part, strchr(key, '/') + 1);
    for (int i = 0; i < ADAPTER_MODULE_TENSORS; i++) {
        const adapter_tensor *x = &m->tensors[i];
        if (!x->value) continue;
        size_t n = (size_t)adapter_tensor_elements(x);
        float *right = expected("grad", x->name, n), *engine = memory_new(n, sizeof *engine), *file = memory_new(n, sizeof *file);
        assert_true(tensor_read(on, x->value->grad, engine, NULL));
        adapter_tensor_to_file(x, engine, file);
        check_difference(x->name, file, right, n, 5e-5);
        free(right);
        free(engine);
        free(file);
    }
}

static void check_layer(const char *key, adapter *a, adapter_stack *stack) {
    error err;
    (void)a;
    run r = run_record(key, stack);
    adapter_step_end(adapted);
    if (!r.y) fail_msg("%s: %s", here->name, tape_error(r.tape));
    tensor *loss = op_mse(r.tape, r.y, r.target), *seed = tape_input(r.tape, "seed", DTYPE_F32, 1, (int64_t[]){1});
    tape_backward(r.tape, loss, seed, false);
    adapter_step_gate_gradients(&step, r.tape);
    plan *p = run_plan(&r);
    assert_true(tensor_write(on, r.target, r.target_values, &err) && tensor_write(on, seed, (float[]){1}, &err));
    if (!adapter_step_write(&step, here->update, here->batch, &err) || !plan_run(p, &err)) fail_msg("%s", err.text);
    char name[256];
    snprintf(name, sizeof name, "%s/y/%s", here->name, key);
    const safetensors_tensor *y = safetensors_find(&fixture, name);
    float *right = safetensors_read_f32(&fixture, y, NULL), *moved = channels_moved(right, y->rank, y->dims, true),
          *got = memory_new(y->elements, sizeof *got);
    assert_true(tensor_read(on, r.y, got, &err));
    check_difference(name, got, moved, y->elements, 5e-6);
    check_layer_gradients(key);
    free(right);
    free(moved);
    free(got);
    adapter_step_free(&step);
    run_free(&r, p);
}

static void layers_are_as_pytorch_has_them(void **state) {
    (void)state;
    error err;
    if (!safetensors_open(&fixture, TEST_DATA "/stepwise.safetensors", &err)) fail_msg("%s", err.text);
    run_begins = begin_step;
    for (int i = 0; i < CASE_COUNT; i++) {
        here = &CASES[i];
        adapter_options o = here->options;
        o.alpha = o.kind[0] == 'o' ? 0.5 : 4, o.targets = "full", o.train_text_encoder = true, o.seed = 7;
        adapted = adapter_create(&o, table, on, &err);
        if (!adapted) fail_msg("%s: %s", here->name, err.text);
        write_values(adapted);
        adapter_stack *stack = adapter_stack_create();
        adapter_stack_add(stack, adapted, 1, 1);
        assert_int_equal(for_each_module(adapted, check_layer, stack), 7);
        adapter_stack_free(stack);
    }
    run_begins = NULL;
    safetensors_close(&fixture);
}

/* ---- choices ---- */

/* Within five standard deviations of `rate`. */
static void check_rate(int64_t hits, int64_t of, double rate, const char *what) {
    double mean = (double)of * rate, deviation = sqrt((double)of * rate * (1 - rate));
    if (fabs((double)hits - mean) > 5 * deviation) fail_msg("%s: %lld of %lld, expected %g", what, (long long)hits, (long long)of, mean);
}

static void dropouts_have_their_rate(void **state) {
    (void)state;
    enum { PLACES = 20000 };
    for (int i = 1; i < 10; i++) {
        double rate = i / 10.0;
        const float key[2] = {(float)(i * 1000003), (float)(i * 7919)};
        int64_t dropped = 0, again = 0, other = 0;
        for (int64_t p = 0; p < PLACES; p++) {
            bool first = !op_dropout_keeps(key, 8, p, rate), next = !op_dropout_keeps(key, 8, p + 1, rate);
            dropped += first;
            again += first && next;
            other += first && !op_dropout_keeps(key, 9, p, rate);
        }
        check_rate(dropped, PLACES, rate, "dropped");
        check_rate(again, PLACES, rate * rate, "neighbours dropped");
        check_rate(other, PLACES, rate * rate, "dropped in two streams");
        assert_true(op_dropout_keeps(key, 8, 0, 0));
    }
}

static void updates_choose_evenly(void **state) {
    (void)state;
    error err;
    enum { UPDATES = 4000, BLOCKS = 4 };
    adapter_options o = {
        .kind = "dylora", .rank = 8, .alpha = 8, .targets = "full", .seed = 3, .stepwise = {.block_size = 2, .module_dropout = 0.25}};
    adapter *a = adapter_create(&o, table, on, &err);
    if (!a) fail_msg("%s", err.text);
    int64_t chosen[BLOCKS] = {0}, out = 0, both = 0;
    for (int64_t u = 0; u < UPDATES; u++) {
        int begin, end, begin2, end2;
        adapter_window(a, &a->modules[0], u, &begin, &end);
        adapter_window(a, &a->modules[1], u, &begin2, &end2);
        assert_int_equal(begin, begin2); /* one draw for all */
        assert_true(begin % 2 == 0 && begin >= 0 && begin < 8 && (end == begin || end == begin + 2));
        chosen[begin / 2]++;
        out += end == begin;
        both += end == begin && end2 == begin2;
    }
    for (int i = 0; i < BLOCKS; i++) check_rate(chosen[i], UPDATES, 1.0 / BLOCKS, "block");
    check_rate(out, UPDATES, 0.25, "left out");
    check_rate(both, UPDATES, 0.0625, "two modules left out");
    adapter_free(a);
}

static void what_does_not_go_together_is_refused(void **state) {
    (void)state;
    static const struct {
        adapter_options options;
        const char *named;
    } REFUSED[] = {
        {{.kind = "loha", .stepwise = {.network_dropout = 0.1}}, "--network-dropout: only for the kinds lora and locon, not loha"},
        {{.kind = "dylora", .stepwise = {.rank_dropout = 0.1}}, "--rank-dropout: only for the kinds"},
        {{.kind = "oft", .stepwise = {.rank_dropout = 0.1}}, "--rank-dropout: only for the kinds"},
        {{.kind = "norm", .stepwise = {.module_dropout = 0.1}}, "--module-dropout: only for the kinds"},
        {{.kind = "ia3", .stepwise = {.max_norm = 1}}, "--scale-weight-norms: only for the kinds"},
        {{.kind = "lora", .stepwise = {.block_size = 4}}, "--block-size: only for the kinds dylora"},
        {{.kind = "lora", .stepwise = {.network_dropout = 1}}, "--network-dropout 1: must be"},
        {{.kind = "lora", .dora = true, .stepwise = {.rank_dropout = 0.1}}, "--dora: goes with --module-dropout only"},
        {{.kind = "dylora", .dora = true}, "--dora: only for the kinds"},
        {{.kind = "dylora", .rank = 6}, "--block-size 4: does not divide the rank 6 of module"}};
    for (size_t i = 0; i < sizeof REFUSED / sizeof *REFUSED; i++) {
        error err = {""};
        adapter_options o = REFUSED[i].options;
        o.rank = o.rank ? o.rank : 8, o.alpha = 8, o.targets = "full";
        assert_null(adapter_create(&o, table, on, &err));
        if (!strstr(err.text, REFUSED[i].named)) fail_msg("\"%s\" is not in: %s", REFUSED[i].named, err.text);
    }
}

/* ---- max-norm regularisation ---- */

static const adapter_options LIMITED[] = {{.kind = "lora", .rank = 3},
                                          {.kind = "locon", .rank = 3, .tucker = true},
                                          {.kind = "lora", .rank = 3, .trained_scalar = true},
                                          {.kind = "lora", .rank = 3, .dora = true},
                                          {.kind = "dylora", .rank = 4},
                                          {.kind = "loha", .rank = 2},
                                          {.kind = "loha", .rank = 9},
                                          {.kind = "loha", .rank = 2, .tucker = true},
                                          {.kind = "loha", .rank = 2, .trained_scalar = true},
                                          {.kind = "lokr", .rank = 1, .factor = 2},
                                          {.kind = "lokr", .rank = 1, .factor = 4, .decompose_both = true},
                                          {.kind = "lokr", .rank = 1, .factor = 2, .tucker = true},
                                          {.kind = "lokr", .rank = 1, .factor = 2, .full_matrix = true},
                                          {.kind = "lokr", .rank = 1, .factor = 2, .trained_scalar = true}};

/* The module's change, which a tape makes of its tensors. Freed by the caller. */
static float *change_of(const adapter_module *m, size_t *count) {
    error err;
    tape *t = tape_create(on);
    tensor *d = m->kind->difference(m, t);
    tape_keep(d);
    plan *p = plan_create(t, &err);
    if (!p || !plan_run(p, &err)) fail_msg("%s", err.text);
    *count = (size_t)tensor_count(d);
    float *values = memory_new(*count, sizeof *values);
    assert_true(tensor_read(on, d, values, &err));
    plan_free(p);
    return values;
}

static double norm_of(const float *x, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static void limit_module(adapter *a, const adapter_module *m, double limit) {
    error err;
    a->stepwise.max_norm = limit;
    tape *t = tape_create(on);
    adapter_limit_norm(a, m, t);
    plan *p = plan_create(t, &err);
    if (!p || !plan_run(p, &err)) fail_msg("%s", err.text);
    plan_free(p);
}

/* Every factor by the same, or the scalar alone by all of it. */
static void check_factors(const adapter_module *m, float *const before[], double ratio) {
    int count = 0;
    bool scalar = m->tensors[ADAPTER_SCALAR].value != NULL;
    for (int i = 0; i < ADAPTER_SCALAR; i++) count += m->tensors[i].value != NULL;
    for (int i = 0; i < ADAPTER_MODULE_TENSORS; i++) {
        const tensor *x = m->tensors[i].value;
        if (!x) continue;
        size_t n = (size_t)tensor_count(x);
        float *after = memory_new(n, sizeof *after);
        assert_true(tensor_read(on, x, after, NULL));
        double factor = i == ADAPTER_MAGNITUDE ? 1 : i == ADAPTER_SCALAR ? ratio : scalar ? 1 : pow(ratio, 1.0 / count);
        for (size_t k = 0; k < n; k++) before[i][k] *= (float)factor;
        check_difference(m->tensors[i].name, after, before[i], n, 1e-5);
        free(after);
    }
}

static void check_limit(adapter *a, const adapter_module *m) {
    size_t count;
    float *before[ADAPTER_MODULE_TENSORS] = {0}, *change = change_of(m, &count);
    for (int i = 0; i < ADAPTER_MODULE_TENSORS; i++) {
        const tensor *x = m->tensors[i].value;
        if (!x) continue;
        before[i] = memory_new((size_t)tensor_count(x), sizeof(float));
        assert_true(tensor_read(on, x, before[i], NULL));
    }
    double norm = norm_of(change, count), limit = norm / 3;
    limit_module(a, m, norm * 1.001);
    float *same = change_of(m, &count);
    assert_memory_equal(same, change, count * sizeof *same);
    limit_module(a, m, limit);
    float *limited = change_of(m, &count);
    for (size_t i = 0; i < count; i++) change[i] /= 3;
    check_difference(m->info->flat, limited, change, count, 1e-5);
    check_factors(m, before, 1.0 / 3);
    for (int i = 0; i < ADAPTER_MODULE_TENSORS; i++) free(before[i]);
    free(change);
    free(same);
    free(limited);
}

static void changes_shrink_to_the_limit(void **state) {
    (void)state;
    static const struct layer_case LIMIT = {.name = "limit"};
    here = &LIMIT;
    for (size_t i = 0; i < sizeof LIMITED / sizeof *LIMITED; i++) {
        error err;
        adapter_options o = LIMITED[i];
        o.alpha = 2, o.targets = "full", o.train_text_encoder = true, o.stepwise.max_norm = 1;
        adapter *a = adapter_create(&o, table, on, &err);
        if (!a) fail_msg("%zu: %s", i, err.text);
        for (int k = 0; k < adapter_tensor_count(a); k++) {
            const adapter_tensor *x = adapter_tensor_at(a, k, NULL);
            float *values = memory_new((size_t)adapter_tensor_elements(x), sizeof *values);
            random_normal_fill(1, 99, (uint64_t)k, values, (size_t)adapter_tensor_elements(x));
            assert_true(tensor_write(on, x->value, values, &err));
            free(values);
        }
        for (int k = 0; k < a->module_count; k++) check_limit(a, &a->modules[k]);
        adapter_free(a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(layers_are_as_pytorch_has_them), cmocka_unit_test(dropouts_have_their_rate),
                                       cmocka_unit_test(updates_choose_evenly), cmocka_unit_test(what_does_not_go_together_is_refused),
                                       cmocka_unit_test(changes_shrink_to_the_limit)};
    validation_begin();
    int failed = 0;
    for (int i = 0; device_choose(i); i++) failed += cmocka_run_group_tests_name(device_name, tests, setup, teardown);
    return validation_end(failed);
}
