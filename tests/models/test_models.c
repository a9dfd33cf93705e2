/* The three models against diffusers and transformers, and a LoRA's gradients through U-Net and text encoder against PEFT, on a small
   random model (tests/reference/make_model_fixtures.py): on the CPU with every set of kernels it runs, and on lavapipe with fp32 and with
   fp16 storage. */
#include "graph/plan.h"
#include "ops/ops.h"
#include "pipeline/pipeline.h"
#include "tests/support/validation.h"
#include "unet/unet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/ops/case_file.h"
#include "tests/ops/poison.h"

#define MODEL TEST_DATA "/model_small"

/* What a device has to reach. */
typedef struct precision {
    const char *device, *name;
    double forward, gradient, one_gradient; /* all gradients together, and that of any single tensor */
} precision;

static const precision PRECISIONS[] = {
    {"cpu", "fp32", 2e-5, 1e-3, 1e-3},
    {"llvmpipe", "fp32", 2e-5, 1e-3, 1e-3},
    {"llvmpipe", "fp16", 2e-2, 2e-2, 5e-2},
};

static case_file fixtures;

typedef struct session {
    const precision *precision;
    device *device;
    pipeline *pipeline;
} session;

/* kernels: of the CPU. */
static session open_session(const precision *p, const char *kernels) {
    error err;
    session s = {.precision = p, .device = device_open(p->device, p->name, 0, &err)};
    if (!s.device) {
        print_message("skipped: %s\n", err.text);
        skip();
    }
    if (!device_set_kernels(s.device, kernels, &err)) fail_msg("%s", err.text);
    s.pipeline = pipeline_open(MODEL, NULL, TEST_DATA "/tokenizer_two", s.device, &err);
    if (!s.pipeline) fail_msg("%s", err.text);
    return s;
}

static void close_session(session *s) {
    pipeline_close(s->pipeline);
    device_close(s->device);
}

static const char *processor(const session *s) {
    return s->device->gpu ? "GPU" : s->device->kernels ? s->device->kernels->name : "portable";
}

static void check_values(const session *s, const char *what, const float *values, const float *expected, size_t count, double most) {
    double e = relative_error(values, expected, count);
    print_message("%-8s %s  %-32s %.1e\n", processor(s), s->precision->name, what, e);
    if (!(e <= most)) fail_msg("%s: error %g, more than %g", what, e, most);
}

static void need(bool ok, const error *err) {
    if (!ok) fail_msg("%s", err->text);
}

/* ---- forward ---- */

static void check_unet(session *s) {
    error err;
    for (int i = 0; i < 4; i++) {
        size_t count, times, tokens_count;
        int64_t dim[4], context_dim[4];
        const float *sample = case_file_need(&fixtures, &count, dim, "unet/%d/sample", i);
        const float *timesteps = case_file_need(&fixtures, &times, NULL, "unet/%d/timesteps", i);
        const float *context = case_file_need(&fixtures, &tokens_count, context_dim, "unet/%d/context", i);
        const float *expected = case_file_need(&fixtures, &count, NULL, "unet/%d/prediction", i);
        float *out = memory_new(count, sizeof *out);
        char what[64];
        snprintf(what, sizeof what, "U-Net %dx%d, batch %d, %d tokens", (int)dim[2], (int)dim[3], (int)dim[0], (int)context_dim[2]);
        for (int again = 0; again < 2; again++) { /* the second run of the same plan gives the same */
            need(pipeline_predict(s->pipeline, sample, (int)dim[0], (int)dim[2], (int)dim[3], timesteps, context, (int)context_dim[2], out,
                                  &err),
                 &err);
            check_values(s, what, out, expected, count, s->precision->forward);
        }
        free(out);
    }
}

static void check_vae(session *s) {
    error err;
    for (int i = 0; i < 3; i++) {
        size_t count, latent_count;
        int64_t dim[4], latent_dim[4];
        const float *image = case_file_need(&fixtures, &count, dim, "vae/%d/image", i);
        const float *latents = case_file_need(&fixtures, &latent_count, latent_dim, "vae/%d/latents", i);
        float *mean = memory_new(latent_count, sizeof *mean), *logvar = memory_new(latent_count, sizeof *logvar);
        float *decoded = memory_new(count, sizeof *decoded);
        char what[64];
        snprintf(what, sizeof what, "VAE %dx%d, batch %d", (int)dim[2], (int)dim[3], (int)dim[0]);
        need(pipeline_vae_encode(s->pipeline, image, (int)dim[0], (int)dim[2], (int)dim[3], mean, logvar, &err), &err);
        check_values(s, what, mean, case_file_need(&fixtures, &latent_count, NULL, "vae/%d/mean", i), latent_count, s->precision->forward);
        check_values(s, what, logvar, case_file_need(&fixtures, &latent_count, NULL, "vae/%d/logvar", i), latent_count,
                     s->precision->forward);
        need(pipeline_vae_decode(s->pipeline, latents, (int)latent_dim[0], (int)latent_dim[2], (int)latent_dim[3], decoded, &err), &err);
        check_values(s, what, decoded, case_file_need(&fixtures, &count, NULL, "vae/%d/decoded", i), count, s->precision->forward);
        free(mean);
        free(logvar);
        free(decoded);
    }
}

static int32_t *read_ids(const char *name, int *n) {
    size_t count;
    const float *values = case_file_need(&fixtures, &count, NULL, "%s", name);
    int32_t *ids = memory_new(count, sizeof *ids);
    for (size_t i = 0; i < count; i++) ids[i] = (int32_t)values[i];
    *n = (int)(count / 77);
    return ids;
}

static void check_text(session *s) {
    error err;
    int n;
    int32_t *ids = read_ids("text/ids", &n);
    size_t count, pooled_count;
    const float *expected_last = case_file_need(&fixtures, &count, NULL, "text/last");
    const float *expected_pooled = case_file_need(&fixtures, &pooled_count, NULL, "text/pooled");
    float *last = memory_new(count, sizeof *last), *penultimate = memory_new(count, sizeof *last), *pooled = memory_new(pooled_count, 4);
    need(pipeline_encode_text_all(s->pipeline, ids, n, last, penultimate, pooled, &err), &err);
    check_values(s, "text, last", last, expected_last, count, s->precision->forward);
    check_values(s, "text, penultimate", penultimate, case_file_need(&fixtures, &count, NULL, "text/skip2"), count, s->precision->forward);
    check_values(s, "text, pooled", pooled, expected_pooled, pooled_count, s->precision->forward);
    static const char *const BY_SKIP[] = {NULL, "text/last", "text/skip2", "text/skip3"};
    for (int skip_layers = 1; skip_layers <= 3; skip_layers++) {
        need(pipeline_encode_text(s->pipeline, ids, n, skip_layers, last, &err), &err);
        check_values(s, "text, clip skip", last, case_file_need(&fixtures, &count, NULL, "%s", BY_SKIP[skip_layers]), count,
                     s->precision->forward);
    }
    assert_false(pipeline_encode_text(s->pipeline, ids, n, 4, last, &err));
    assert_non_null(strstr(err.text, "clip skip 4"));
    ids[7] = 64;
    assert_false(pipeline_encode_text(s->pipeline, ids, n, 1, last, &err));
    assert_non_null(strstr(err.text, "64"));
    free(ids);
    free(last);
    free(penultimate);
    free(pooled);
}

/* ---- gradients ---- */

typedef struct training {
    plan *plan;
    tensor *embedded, *sample, *time, *target, *seed, *prediction, *loss;
    size_t arena;
} training;

/* Token embeddings to loss, and back to every tensor of the adapters. */
static void training_open(session *s, training *t, const int64_t sample_dim[4], bool checkpointing) {
    error err;
    pipeline *p = s->pipeline;
    int64_t n = sample_dim[0];
    tape *tp = tape_create(s->device);
    layer_scope text = pipeline_scope(p, tp, CHECKPOINT_TEXT_ENCODER), unet = pipeline_scope(p, tp, CHECKPOINT_UNET);
    int64_t image[4] = {n, sample_dim[2], sample_dim[3], 4};
    t->embedded = tape_input(tp, "embedded tokens", DTYPE_COUNT, 3, (int64_t[]){n, 77, p->text.width});
    t->sample = tape_input(tp, "sample", DTYPE_COUNT, 4, image);
    t->time = tape_input(tp, "time", DTYPE_COUNT, 2, (int64_t[]){n, unet_time_channels(&p->model)});
    t->target = tape_input(tp, "target", DTYPE_F32, 4, image);
    t->seed = tape_input(tp, "seed", DTYPE_F32, 1, (int64_t[]){1});
    t->prediction = unet_forward(&unet, t->sample, t->time, text_encoder_forward(&text, t->embedded, 1));
    t->loss = op_mse(tp, t->prediction, t->target);
    tape_keep(t->prediction);
    tape_backward(tp, t->loss, t->seed, checkpointing);
    t->plan = plan_create(tp, &err);
    need(t->plan != NULL, &err);
    need(poison_temporaries(s->device, tp, &err), &err);
    t->arena = plan_arena_bytes(t->plan);
}

static void write_image(session *s, tensor *x, const float *values, const int64_t dim[4]) {
    error err;
    float *turned = memory_new((size_t)tensor_count(x), sizeof *turned);
    pipeline_channels_last(values, (int)dim[0], (int)dim[1], dim[2] * dim[3], turned);
    need(tensor_write(s->device, x, turned, &err), &err);
    free(turned);
}

static void training_run(session *s, training *t, const int64_t dim[4], float seed) {
    error err;
    int n;
    size_t count;
    int32_t *ids = read_ids("lora/ids", &n);
    float *embedded = memory_new((size_t)tensor_count(t->embedded), sizeof *embedded);
    need(text_encoder_embed(&s->pipeline->model, ids, n, embedded, &err) && tensor_write(s->device, t->embedded, embedded, &err), &err);
    write_image(s, t->sample, case_file_need(&fixtures, &count, NULL, "lora/sample"), dim);
    write_image(s, t->target, case_file_need(&fixtures, &count, NULL, "lora/target"), dim);
    int64_t channels = tensor_columns(t->time);
    float *time = memory_new((size_t)(n * channels), sizeof *time);
    unet_embed_timesteps(case_file_need(&fixtures, &count, NULL, "lora/timesteps"), n, channels, time);
    need(tensor_write(s->device, t->time, time, &err) && tensor_write(s->device, t->seed, &seed, &err) && plan_run(t->plan, &err), &err);
    free(ids);
    free(embedded);
    free(time);
}

static void check_prediction(session *s, training *t, const int64_t dim[4]) {
    error err;
    size_t count;
    const float *expected = case_file_need(&fixtures, &count, NULL, "lora/prediction");
    float loss, *values = memory_new((size_t)tensor_count(t->prediction), sizeof *values);
    float *turned = memory_new((size_t)tensor_count(t->prediction), sizeof *values);
    need(tensor_read(s->device, t->prediction, values, &err) && tensor_read(s->device, t->loss, &loss, &err), &err);
    pipeline_channels_first(values, (int)dim[0], 4, dim[2] * dim[3], turned);
    check_values(s, "prediction with adapter", turned, expected, count, s->precision->forward);
    check_values(s, "loss", &loss, case_file_need(&fixtures, &count, NULL, "lora/loss"), 1, s->precision->forward);
    free(values);
    free(turned);
}

/* The adapter's gradients in the file's layout, one behind the other, divided by `seed`; the gradients on the device become zero. */
static float *take_gradients(session *s, const adapter *a, float seed, size_t *count) {
    error err;
    float *all = memory_new((size_t)adapter_parameters(a), sizeof *all), *at = all;
    for (int i = 0; i < adapter_tensor_count(a); i++) {
        const adapter_tensor *x = adapter_tensor_at(a, i, NULL);
        size_t n = (size_t)adapter_tensor_elements(x);
        float *engine = memory_new(n, sizeof *engine);
        need(tensor_read(s->device, x->value->grad, engine, &err), &err);
        adapter_tensor_to_file(x, engine, at);
        for (size_t k = 0; k < n; k++) at[k] /= seed;
        memset(engine, 0, n * sizeof *engine);
        need(tensor_write(s->device, x->value->grad, engine, &err), &err);
        free(engine);
        at += n;
    }
    *count = (size_t)(at - all);
    return all;
}

static void check_gradients(session *s, const adapter *a, const float *gradients) {
    double worst = 0, all_difference = 0, all_norm = 0;
    const char *worst_name = "";
    size_t count;
    for (int i = 0; i < adapter_tensor_count(a); i++) {
        const adapter_tensor *x = adapter_tensor_at(a, i, NULL);
        const float *expected = case_file_need(&fixtures, &count, NULL, "grad/%s", x->name);
        assert_int_equal(count, adapter_tensor_elements(x));
        double difference = 0, norm = 0;
        for (size_t k = 0; k < count; k++) {
            difference += pow((double)gradients[k] - (double)expected[k], 2);
            norm += pow((double)expected[k], 2);
        }
        double e = sqrt(difference / norm);
        if (e > worst || isnan(e)) worst = e, worst_name = x->name;
        all_difference += difference;
        all_norm += norm;
        gradients += count;
    }
    double all = sqrt(all_difference / all_norm);
    print_message("%-8s %s  gradients of %d tensors: %.1e, the worst %.1e (%s)\n", processor(s), s->precision->name,
                  adapter_tensor_count(a), all, worst, worst_name);
    if (!(worst <= s->precision->one_gradient)) fail_msg("gradient of %s: error %g", worst_name, worst);
    if (!(all <= s->precision->gradient)) fail_msg("gradients: error %g", all);
}

/* fp16 activations need a loss scale, as in training. */
static void check_adapter(session *s) {
    error err;
    adapter_report report;
    adapter *a = adapter_load(MODEL "/adapter.safetensors", s->pipeline->modules, s->device, true, &report, &err);
    need(a != NULL, &err);
    assert_int_equal(report.applied, report.total);
    adapter_report_free(&report);
    adapter_stack_add(s->pipeline->adapters, a, 1, 1);
    pipeline_adapters_changed(s->pipeline);
    float seed = s->device->activation == DTYPE_F16 ? 1024.0f : 1.0f;
    int64_t dim[4];
    size_t count;
    case_file_need(&fixtures, &count, dim, "lora/sample");
    float *gradients[2];
    size_t arena[2];
    for (int checkpointing = 0; checkpointing < 2; checkpointing++) {
        training t;
        training_open(s, &t, dim, checkpointing != 0);
        training_run(s, &t, dim, seed);
        training_run(s, &t, dim, seed); /* gradients add up over runs */
        check_prediction(s, &t, dim);
        gradients[checkpointing] = take_gradients(s, a, 2 * seed, &count);
        check_gradients(s, a, gradients[checkpointing]);
        arena[checkpointing] = t.arena;
        plan_free(t.plan);
    }
    print_message("arena: %zu KiB, with checkpointing %zu KiB\n", arena[0] >> 10, arena[1] >> 10);
    assert_true(arena[1] < arena[0]);
    assert_memory_equal(gradients[0], gradients[1], count * sizeof *gradients[0]);
    free(gradients[0]);
    free(gradients[1]);
}

/* ---- devices ---- */

static void run_parts(int precision_index, void (*part)(session *s)) {
    const precision *p = &PRECISIONS[precision_index];
    const cpu_kernels *kernels = NULL;
    for (int i = 0; i == 0 || kernels; i++) { /* portable, then what the processor runs */
        session s = open_session(p, kernels ? kernels->name : "portable");
        part(&s);
        close_session(&s);
        kernels = strcmp(p->device, "cpu") == 0 ? cpu_kernels_at(i) : NULL;
    }
}

#define TEST(name, index, part) \
    static void name(void **state) { \
        (void)state; \
        run_parts(index, part); \
    }

TEST(test_unet_cpu, 0, check_unet)
TEST(test_vae_cpu, 0, check_vae)
TEST(test_text_cpu, 0, check_text)
TEST(test_adapter_cpu, 0, check_adapter)
TEST(test_unet_vulkan_fp32, 1, check_unet)
TEST(test_vae_vulkan_fp32, 1, check_vae)
TEST(test_text_vulkan_fp32, 1, check_text)
TEST(test_adapter_vulkan_fp32, 1, check_adapter)
TEST(test_unet_vulkan_fp16, 2, check_unet)
TEST(test_vae_vulkan_fp16, 2, check_vae)
TEST(test_text_vulkan_fp16, 2, check_text)
TEST(test_adapter_vulkan_fp16, 2, check_adapter)

int main(int argc, char **argv) {
    error err;
    if (!case_file_open(&fixtures, "models.safetensors", &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    validation_begin();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unet_cpu),         cmocka_unit_test(test_vae_cpu),
        cmocka_unit_test(test_text_cpu),         cmocka_unit_test(test_adapter_cpu),
        cmocka_unit_test(test_unet_vulkan_fp32), cmocka_unit_test(test_vae_vulkan_fp32),
        cmocka_unit_test(test_text_vulkan_fp32), cmocka_unit_test(test_adapter_vulkan_fp32),
        cmocka_unit_test(test_unet_vulkan_fp16), cmocka_unit_test(test_vae_vulkan_fp16),
        cmocka_unit_test(test_text_vulkan_fp16), cmocka_unit_test(test_adapter_vulkan_fp16),
    };
    int failed = cmocka_run_group_tests_name("models", tests, NULL, NULL);
    case_file_close(&fixtures);
    return failed;
}
