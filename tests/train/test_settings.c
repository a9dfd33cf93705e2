/* Learning rates that differ from tensor to tensor, recomputed from what a training traced; trained scalars over a stop and a resume; what
   a file says of its settings. */
#include "formats/safetensors.h"
#include "lora/start.h"
#include "tests/train/training.h"
#include "train/internal.h"

#include <math.h>

static place here;

static int setup(void **state) {
    (void)state;
    place_open(&here, "test_settings");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    place_close(&here);
    return 0;
}

/* ---- learning rates ---- */

static float *traced(const safetensors *file, const char *prefix, const char *name, size_t *count) {
    char full[256];
    error err = {""};
    snprintf(full, sizeof full, "%s/%s", prefix, name);
    const safetensors_tensor *t = safetensors_need(file, full, &err);
    if (!t) fail_msg("%s", err.text);
    *count = t->elements;
    return safetensors_read_f32(file, t, &err);
}

/* The first step of torch.optim.AdamW: both moments' corrections cancel their (1 - beta). */
static double first_step(double value, double gradient, double rate) {
    return value * (1 - rate * 0.01) - rate * gradient / (fabs(gradient) + 1e-8);
}

static double expected_rate(const char *name) {
    double rate = strncmp(name, "lora_te_", 8) == 0 ? 4e-4 : 1e-3;
    if (strstr(name, "_to_k.")) rate *= 0.5;
    if (strstr(name, "_to_q.")) rate *= 3;
    if (strstr(name, ".lora_up.")) rate *= strncmp(name, "lora_te_", 8) == 0 ? 2 : 16;
    return rate;
}

static void every_tensor_moves_at_its_own_rate(void **state) {
    (void)state;
    static const char *const rates[] = {"to_[kq]=0.5", "to_q=3", "attn2=0"};
    char *output = place_output(&here, "rates"), *trace = place_path(&here, "rates/trace");
    training t = training_make(&here, output);
    t.options.steps = 1;
    t.options.text_rate = 4e-4;
    t.options.learner.max_grad_norm = 0;
    t.options.trace_folder = trace;
    t.options.trace_tensors = 1;
    t.options.adapter.module_lr = (adapter_rules){rates, 3};
    t.options.adapter.up_ratio[CHECKPOINT_UNET] = 16;
    t.options.adapter.up_ratio[CHECKPOINT_TEXT_ENCODER] = 2;
    training_expect(&t, TRAIN_DONE);

    error err = {""};
    char *path = memory_format("%s/step-000001.safetensors", trace);
    safetensors file;
    if (!safetensors_open(&file, path, &err)) fail_msg("%s", err.text);
    int tensors = 0;
    for (size_t i = 0; i < file.count; i++) {
        if (strncmp(file.tensors[i].name, "grad/", 5) != 0) continue;
        const char *name = file.tensors[i].name + 5;
        assert_null(strstr(name, "attn2"));
        size_t n;
        float *before = traced(&file, "before", name, &n), *gradient = traced(&file, "grad", name, &n),
              *after = traced(&file, "after", name, &n);
        double rate = expected_rate(name);
        for (size_t j = 0; j < n; j++) {
            double right = first_step((double)before[j], (double)gradient[j], rate);
            if (!(fabs((double)after[j] - right) <= 1e-3 * rate + 1e-7 * fabs(right)))
                fail_msg("%s [%zu]: %g after %g with gradient %g, not %g", name, j, (double)after[j], (double)before[j],
                         (double)gradient[j], right);
        }
        tensors++;
        free(before);
        free(gradient);
        free(after);
    }
    assert_true(tensors > 20);
    safetensors_close(&file);
    free(path);
    free(trace);
    free(output);
}

/* ---- going on ---- */

typedef void (*change)(training *t);

static void scalar_of_lora(training *t) {
    t->options.adapter.trained_scalar = t->options.adapter.rank_stabilised = t->options.adapter.dora = true;
    t->options.adapter.up_ratio[CHECKPOINT_UNET] = 8;
}

static void scalar_of_loha(training *t) {
    t->options.adapter.kind = "loha";
    t->options.adapter.trained_scalar = true;
}

static void scalar_of_lokr(training *t) {
    t->options.adapter.kind = "lokr";
    t->options.adapter.trained_scalar = t->options.adapter.decompose_both = true;
}

static void scalar_of_glora(training *t) {
    t->options.adapter.kind = "glora";
    t->options.adapter.trained_scalar = true;
}

static void pissa(training *t) {
    t->options.adapter.targets = "blocks";
    t->options.adapter.init = ADAPTER_INIT_PISSA;
    t->options.adapter.rank_stabilised = true;
}

static void by_block(training *t) {
    t->options.adapter.targets = "full";
    t->options.adapter.block_dims = "0,1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4";
    t->options.adapter.down_lr_weight = "sine+0.5";
    t->options.adapter.init = ADAPTER_INIT_NORMAL;
}

static const struct {
    const char *name;
    change change;
} RESUMED[] = {{"lora", scalar_of_lora},   {"loha", scalar_of_loha}, {"lokr", scalar_of_lokr},
               {"glora", scalar_of_glora}, {"block", by_block},      {"pissa", pissa}};

static void stopped_and_resumed_is_as_if_never_stopped(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof RESUMED / sizeof *RESUMED; i++) {
        char *folder = memory_format("whole-%s", RESUMED[i].name), *a = place_output(&here, folder);
        free(folder);
        folder = memory_format("parts-%s", RESUMED[i].name);
        char *b = place_output(&here, folder);
        training whole = training_make(&here, a), part = training_make(&here, b);
        RESUMED[i].change(&whole);
        RESUMED[i].change(&part);
        part.stop_at = 2;
        training_expect(&whole, TRAIN_DONE);
        training_expect(&part, TRAIN_STOPPED);
        part.options.resume = true;
        part.stop_at = -1;
        training_expect(&part, TRAIN_DONE);
        expect_equal_results(a, b);
        free(folder);
        free(a);
        free(b);
    }
}

/* The scalar has moved, is kept in the state, and is in the adapter's file only by its effect. */
static void the_state_has_the_scalar_and_the_file_has_not(void **state) {
    (void)state;
    char *written = memory_format("%s/whole-lokr/me.safetensors", here.folder), *kept = trainer_state_path(written);
    safetensors file, states;
    error err = {""};
    if (!safetensors_open(&file, written, &err) || !safetensors_open(&states, kept, &err)) fail_msg("%s", err.text);
    for (size_t i = 0; i < file.count; i++) assert_null(strstr(file.tensors[i].name, "scalar"));
    int scalars = 0;
    for (size_t i = 0; i < states.count; i++) {
        const safetensors_tensor *t = &states.tensors[i];
        if (strncmp(t->name, "value/", 6) != 0 || !strstr(t->name, ".scalar")) continue;
        float *value = safetensors_read_f32(&states, t, &err);
        if (t->elements != 1 || !(fabsf(*value) > 1e-5f)) fail_msg("%s is %g", t->name, (double)*value);
        free(value);
        scalars++;
    }
    assert_true(scalars > 10);
    safetensors_close(&file);
    safetensors_close(&states);
    free(written);
    free(kept);
}

static void other_scalar(training *t) { t->options.adapter.trained_scalar = true; }
static void other_stabilising(training *t) { t->options.adapter.rank_stabilised = true; }
static void other_ratio(training *t) { t->options.adapter.up_ratio[CHECKPOINT_UNET] = 4; }
static void other_blocks(training *t) { t->options.adapter.block_dims = "2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2"; }
static void other_weights(training *t) { t->options.adapter.up_lr_weight = "cosine"; }
static void other_init(training *t) { t->options.adapter.init = ADAPTER_INIT_NORMAL; }

static void other_module_rates(training *t) {
    static const char *const rates[] = {"to_k=2"};
    t->options.adapter.module_lr = (adapter_rules){rates, 1};
}

static void resuming_with_other_settings_names_the_option(void **state) {
    (void)state;
    static const struct {
        change change;
        const char *named;
    } cases[] = {{other_scalar, "--use-scalar 0, this command says 1"},
                 {other_stabilising, "--rs-lora"},
                 {other_ratio, "--loraplus-unet-lr-ratio 0, this command says 4"},
                 {other_blocks, "--block-dims (default), this command says 2,2"},
                 {other_weights, "--up-lr-weight (default), this command says cosine"},
                 {other_init, "--init (default), this command says normal"},
                 {other_module_rates, "--module-lr (default), this command says to_k=2"}};
    char *a = place_output(&here, "mismatch");
    training first = training_make(&here, a);
    first.options.steps = 1;
    training_expect(&first, TRAIN_DONE);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        training t = training_make(&here, a);
        t.options.resume = true;
        cases[i].change(&t);
        training_expect(&t, TRAIN_FAILED);
        expect_text(t.err.text, cases[i].named);
    }
    free(a);
}

/* ---- PiSSA ---- */

/* What the factors take from a weight is its best approximation of the rank: the rest has nothing in the directions of either factor. */
static void pissa_begins_with_the_principal_vectors(void **state) {
    (void)state;
    error err = {""};
    char *model = place_path(&here, "model.safetensors");
    pipeline *p = pipeline_open(model, NULL, NULL, here.device, &err);
    if (!p) fail_msg("%s", err.text);
    adapter_options o = {.targets = "blocks", .rank = 3, .alpha = 6, .init = ADAPTER_INIT_PISSA};
    adapter *a = adapter_create(&o, p->modules, here.device, &err);
    if (!a || !train_pissa_begin(a, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < a->module_count; i++) {
        const adapter_module *m = &a->modules[i];
        const checkpoint_tensor *w = m->info->weight;
        int64_t r = m->rank, out = m->info->out, in = (int64_t)w->elements / out;
        float *rest = memory_new(w->elements, sizeof *rest), *down = memory_new((size_t)(r * in), sizeof *down),
              *up = memory_new((size_t)(out * r), sizeof *up);
        dtype_to_f32(rest, w->data, w->type, w->elements);
        assert_true(adapter_start_read(a, m, 0, down, &err) && adapter_start_read(a, m, 1, up, &err));
        double whole = 0, size = 0, worst = 0;
        for (int64_t y = 0; y < out; y++)
            for (int64_t x = 0; x < in; x++) {
                whole += (double)rest[y * in + x] * (double)rest[y * in + x];
                for (int64_t k = 0; k < r; k++) rest[y * in + x] -= (float)m->scale * up[y * r + k] * down[k * in + x];
            }
        for (int64_t k = 0; k < r; k++)
            for (int64_t y = 0; y < out; y++) {
                double along = 0;
                for (int64_t x = 0; x < in; x++) along += (double)(rest[y * in + x] * down[k * in + x]);
                worst = fmax(worst, fabs(along));
            }
        for (int64_t j = 0; j < r * in; j++) size += (double)down[j] * (double)down[j];
        assert_true(size > 0);
        if (worst > 1e-4 * sqrt(whole * size)) fail_msg("%s: %g of %g is left", m->info->flat, worst, sqrt(whole * size));
        free(rest);
        free(down);
        free(up);
    }
    adapter_free(a);
    pipeline_close(p);
    free(model);
}

/* ---- metadata ---- */

static void files_say_what_they_were_trained_with(void **state) {
    (void)state;
    static const struct {
        const char *folder, *key, *value;
    } rows[] = {
        {"whole-lora", "ss_network_module", "lycoris.kohya"}, /* sd-scripts' own module has none of it */
        {"whole-lora", "ss_network_dim", "2"},
        {"whole-lora", "ss_network_alpha", "2.0"}, /* as asked for, though the tensors say 2 sqrt 2 */
        {"whole-lora", "ss_network_args",
         "{\"algo\": \"lora\", \"dora_wd\": \"True\", \"wd_on_output\": \"False\", \"use_scalar\": \"True\", \"rs_lora\": \"True\", "
         "\"preset\": \"attn-only\", "
         "\"loraplus_unet_lr_ratio\": \"8.0\"}"},
        {"whole-lokr", "ss_network_args",
         "{\"algo\": \"lokr\", \"decompose_both\": \"True\", \"use_scalar\": \"True\", \"preset\": \"attn-only\"}"},
        {"whole-pissa", "ss_network_dim", "4"}, /* twice that of the training */
        {"whole-pissa", "ss_network_alpha", "4.0"},
        {"whole-block", "ss_network_module", "networks.lora"},
        {"whole-block", "ss_network_dim", "Dynamic"},
        {"rates", "ss_network_args",
         "{\"loraplus_unet_lr_ratio\": \"16.0\", \"loraplus_text_encoder_lr_ratio\": \"2.0\", \"module_lr\": \"to_[kq]=0.5 to_q=3 "
         "attn2=0\"}"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *path = memory_format("%s/%s/me.safetensors", here.folder, rows[i].folder);
        safetensors file;
        error err = {""};
        if (!safetensors_open(&file, path, &err)) fail_msg("%s", err.text);
        const char *value = safetensors_metadata(&file, rows[i].key);
        if (!value || strcmp(value, rows[i].value) != 0)
            fail_msg("%s: %s is %s, not %s", rows[i].folder, rows[i].key, value ? value : "missing", rows[i].value);
        safetensors_close(&file);
        free(path);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_tensor_moves_at_its_own_rate),
                                       cmocka_unit_test(stopped_and_resumed_is_as_if_never_stopped),
                                       cmocka_unit_test(the_state_has_the_scalar_and_the_file_has_not),
                                       cmocka_unit_test(resuming_with_other_settings_names_the_option),
                                       cmocka_unit_test(pissa_begins_with_the_principal_vectors),
                                       cmocka_unit_test(files_say_what_they_were_trained_with)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
