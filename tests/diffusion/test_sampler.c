#include "diffusion/denoise.h"
#include "diffusion/sampler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/ops/case_file.h"

#include <math.h>

enum { COUNT = 24 };

static noise_schedule schedule;
static case_file fixtures;

/* The formula of make_diffusion_fixtures.py. */
static void network(const float *sample, float t, float *out) {
    for (int k = 0; k < COUNT; k++) out[k] = sample[k] / (1 + fabsf(sample[k])) * (0.5f + t * 0.0005f) + (float)(k % 7 - 3) * 0.1f;
}

static void test_noise_schedule(void **state) {
    (void)state;
    size_t count;
    const float *alphas = case_file_need(&fixtures, &count, NULL, "alphas_cumprod");
    assert_int_equal(count, SCHEDULE_TIMESTEPS);
    assert_memory_equal(schedule.alphas_cumprod, alphas, sizeof schedule.alphas_cumprod);
    const float *sigmas = case_file_need(&fixtures, &count, NULL, "train_sigmas");
    assert_true(relative_error(schedule.sigmas, sigmas, count) < 1e-7);
    for (int t = 0; t < SCHEDULE_TIMESTEPS; t += 37) {
        float image, noise;
        noise_schedule_add_noise(&schedule, t, &image, &noise);
        assert_true(fabsf(image * image - alphas[t]) < 1e-6f && fabsf(image * image + noise * noise - 1) < 1e-6f);
        assert_true(fabs(noise_schedule_timestep(&schedule, (double)schedule.sigmas[t]) - t) < 1e-3);
    }
    assert_true(noise_schedule_timestep(&schedule, 0) == 0 && noise_schedule_timestep(&schedule, 1e9) == 999);
}

/* One run over all steps; every intermediate sample is compared. */
static void compare_run(const sampler_kind *kind, sigma_spacing spacing, int steps, double *worst) {
    const char *spacing_name = sigma_spacing_name(spacing);
    size_t count;
    sampler_state s;
    error err;
    assert_true(sampler_create(&s, &schedule, kind, spacing, steps, COUNT, &err));
    const float *timesteps = case_file_need(&fixtures, &count, NULL, "%s.%s.%d.timesteps", kind->name, spacing_name, steps);
    assert_int_equal(count, steps);
    for (int i = 0; i < steps; i++) assert_true(fabsf(s.timesteps[i] - timesteps[i]) <= 1e-4f);
    const float *sigmas = case_file_need(&fixtures, &count, NULL, "%s.%s.%d.sigmas", kind->name, spacing_name, steps);
    assert_int_equal(count, steps + 1);
    for (int i = 0; i <= steps; i++) assert_true(fabsf(s.sigmas[i] - sigmas[i]) <= 2e-6f * sigmas[i]);

    const float *start = case_file_need(&fixtures, &count, NULL, "start"), *fresh = case_file_need(&fixtures, &count, NULL, "fresh");
    const float *samples = case_file_need(&fixtures, &count, NULL, "%s.%s.%d.samples", kind->name, spacing_name, steps);
    float sample[COUNT], input[COUNT], noise_pred[COUNT];
    denoise_start(&s, sample, start);
    for (int i = 0; i < steps; i++) {
        sampler_scale_input(&s, i, input, sample);
        network(input, s.timesteps[i], noise_pred);
        sampler_step(&s, i, noise_pred, sample, sampler_needs_noise(&s, i) ? fresh + (size_t)i * COUNT : NULL);
        double wrong = relative_error(sample, samples + (size_t)i * COUNT, COUNT);
        if (wrong > *worst) *worst = wrong;
        if (wrong > 1e-5) print_message("%s %s, step %d of %d: relative error %g\n", kind->name, spacing_name, i + 1, steps, wrong);
        assert_true(wrong <= 1e-5);
    }
    sampler_destroy(&s);
}

static void test_steps_like_diffusers(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 5, 20, 30};
    const sampler_kind *kind;
    for (int k = 0; (kind = sampler_kind_at(k)); k++) {
        for (int spacing = 0; spacing < SIGMA_SPACING_COUNT; spacing++) {
            double worst = 0;
            for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) compare_run(kind, (sigma_spacing)spacing, counts[i], &worst);
            print_message("%-9s %-8s largest relative error %.1e\n", kind->name, sigma_spacing_name((sigma_spacing)spacing), worst);
        }
    }
}

/* How much image is in the sample at a sigma. */
static float image_scale(const sampler_kind *kind, float sigma) { return kind->variance_preserving ? 1 / sqrtf(sigma * sigma + 1) : 1; }

/* With a network that knows the image (0.5 everywhere), what is left at the end is the share sigmas[steps] / sigmas[0] of the first noise:
   none, except after DDIM's default spacing. */
static void test_every_step_count(void **state) {
    (void)state;
    const sampler_kind *kind;
    for (int k = 0; (kind = sampler_kind_at(k)); k++) {
        for (int steps = 1; steps <= SCHEDULE_MAX_STEPS; steps += steps < 60 ? 1 : 313) {
            for (int spacing = 0; spacing < SIGMA_SPACING_COUNT; spacing++) {
                sampler_state s;
                error err;
                float sample[COUNT], noise_pred[COUNT], noise[COUNT] = {0};
                assert_true(sampler_create(&s, &schedule, kind, (sigma_spacing)spacing, steps, COUNT, &err));
                float left = s.sigmas[steps] / s.sigmas[0], first = image_scale(kind, s.sigmas[0]),
                      last = image_scale(kind, s.sigmas[steps]);
                float expected[COUNT];
                for (int d = 0; d < COUNT; d++) {
                    sample[d] = s.init_noise_sigma * (float)(d - 12) / 7;
                    expected[d] = last * (0.5f + left * (sample[d] / first - 0.5f));
                }
                for (int i = 0; i < steps; i++) {
                    float sigma = s.sigmas[i], scale = image_scale(kind, sigma);
                    assert_true(sigma > s.sigmas[i + 1] || (i == steps - 1 && sigma >= s.sigmas[steps]));
                    assert_true(s.timesteps[i] >= 0 && s.timesteps[i] <= 999);
                    for (int d = 0; d < COUNT; d++) noise_pred[d] = (sample[d] / scale - 0.5f) / sigma;
                    sampler_step(&s, i, noise_pred, sample, noise);
                }
                for (int d = 0; d < COUNT; d++) assert_true(fabsf(sample[d] - expected[d]) < 1e-4f);
                sampler_destroy(&s);
            }
        }
    }
}

static void test_names(void **state) {
    (void)state;
    static const char *const names[][2] = {{"DDIM", "ddim"},        {"Euler", "euler"},         {"k_euler", "euler"},
                                           {"euler_a", "euler-a"},  {"Euler a", "euler-a"},     {"euler_ancestral", "euler-a"},
                                           {"eulera", "euler-a"},   {"DPM++ 2M", "dpmpp-2m"},   {"dpmpp_2m", "dpmpp-2m"},
                                           {"dpm++2m", "dpmpp-2m"}, {"dpmsolver++", "dpmpp-2m"}};
    error err;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const sampler_kind *kind = sampler_kind_find(names[i][0], &err);
        assert_non_null(kind);
        assert_string_equal(kind->name, names[i][1]);
    }
    static const char *const unknown[] = {"", "eule", "euler b", "euler ancestralx", "dpmpp 2m sde"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_null(sampler_kind_find(unknown[i], &err));
        assert_non_null(strstr(err.text, "euler-a"));
    }
    sigma_spacing spacing;
    assert_true(sigma_spacing_find(&spacing, "Karras", &err) && spacing == SIGMA_SPACING_KARRAS);
    assert_false(sigma_spacing_find(&spacing, "karas", &err));
    sampler_state s;
    assert_false(sampler_create(&s, &schedule, sampler_kind_at(0), SIGMA_SPACING_DEFAULT, 0, COUNT, &err));
    assert_false(sampler_create(&s, &schedule, sampler_kind_at(0), SIGMA_SPACING_DEFAULT, 1000, COUNT, &err));
}

/* --- the loop --- */

typedef struct calls {
    int predicted, unconditional, progress, fail_at, poison_at;
    atomic_bool cancel;
    int cancel_after;
} calls;

static bool predict(void *user, int i, const float *sample, float timestep, float *cond, float *uncond, error *err) {
    calls *c = user;
    assert_int_equal(i, c->predicted);
    c->predicted++;
    if (c->fail_at == i + 1) return error_set(err, "the network broke");
    network(sample, timestep, cond);
    if (uncond) {
        c->unconditional++;
        for (int k = 0; k < COUNT; k++) uncond[k] = cond[k] - 0.25f;
    }
    if (c->poison_at == i + 1) cond[5] = NAN;
    return true;
}

static void progress(void *user, int i, int steps, const float *sample) {
    calls *c = user;
    assert_true(i < steps && isfinite(sample[0]));
    c->progress++;
    if (c->progress == c->cancel_after) atomic_store(&c->cancel, true);
}

static denoise_status run_loop(const char *name, float cfg, calls *c, float *sample, error *err) {
    sampler_state s;
    random_noise noise[2];
    for (uint64_t i = 0; i < 2; i++) random_noise_init(&noise[i], RANDOM_SOURCE_GPU, i);
    assert_true(sampler_create(&s, &schedule, sampler_kind_find(name, err), SIGMA_SPACING_KARRAS, 6, COUNT, err));
    for (int i = 0; i < 2; i++) random_noise_fill(&noise[i], sample + (ptrdiff_t)i * COUNT / 2, COUNT / 2);
    denoise_start(&s, sample, sample);
    denoise_options options = {.predict = predict,
                               .predict_user = c,
                               .progress = progress,
                               .progress_user = c,
                               .cancel = &c->cancel,
                               .cfg = cfg,
                               .images = 2,
                               .noise = noise};
    denoise_status status = denoise_run(&s, &options, sample, err);
    sampler_destroy(&s);
    return status;
}

static void test_guidance(void **state) {
    (void)state;
    static const char *const names[] = {"ddim", "euler", "euler-a", "dpmpp-2m"};
    for (size_t n = 0; n < 4; n++) {
        float plain[COUNT], guided[COUNT], again[COUNT];
        error err;
        calls one = {0}, three = {0}, repeated = {0};
        assert_int_equal(run_loop(names[n], 1, &one, plain, &err), DENOISE_DONE);
        assert_int_equal(one.predicted, 6);
        assert_int_equal(one.unconditional, 0);
        assert_int_equal(one.progress, 6);
        assert_int_equal(run_loop(names[n], 3, &three, guided, &err), DENOISE_DONE);
        assert_int_equal(three.unconditional, 6);
        assert_true(relative_error(guided, plain, COUNT) > 0.1); /* 0.5 more noise taken away a step */
        assert_int_equal(run_loop(names[n], 3, &repeated, again, &err), DENOISE_DONE);
        assert_memory_equal(guided, again, sizeof again);
    }
}

static void test_loop_stops(void **state) {
    (void)state;
    float sample[COUNT];
    error err;
    calls cancelled = {.cancel_after = 2}, broken = {.fail_at = 3}, poisoned = {.poison_at = 4};
    assert_int_equal(run_loop("euler", 7.5f, &cancelled, sample, &err), DENOISE_CANCELLED);
    assert_int_equal(cancelled.predicted, 2);
    assert_int_equal(run_loop("euler", 7.5f, &broken, sample, &err), DENOISE_FAILED);
    assert_string_equal(err.text, "the network broke");
    assert_int_equal(run_loop("euler", 7.5f, &poisoned, sample, &err), DENOISE_FAILED);
    assert_non_null(strstr(err.text, "step 4 of 6"));
    for (int k = 0; k < COUNT; k++) assert_true(isfinite(sample[k]));
}

/* An image of a batch is the one drawn alone with its seed. */
static void test_noise_per_image(void **state) {
    (void)state;
    float both[COUNT], sample[COUNT];
    error err;
    calls c = {0};
    assert_int_equal(run_loop("euler-a", 1, &c, both, &err), DENOISE_DONE);
    random_noise noise;
    random_noise_init(&noise, RANDOM_SOURCE_GPU, 1);
    sampler_state s;
    assert_true(sampler_create(&s, &schedule, sampler_kind_find("euler-a", &err), SIGMA_SPACING_KARRAS, 6, COUNT / 2, &err));
    random_noise_fill(&noise, sample, COUNT / 2);
    denoise_start(&s, sample, sample);
    for (int i = 0; i < 6; i++) {
        float input[COUNT] = {0}, noise_pred[COUNT], fresh[COUNT];
        sampler_scale_input(&s, i, input + COUNT / 2, sample);
        sampler_scale_input(&s, i, input, sample);
        memcpy(input + COUNT / 2, input, sizeof input / 2); /* the formula's bias depends on the place */
        network(input, s.timesteps[i], noise_pred);
        bool needed = sampler_needs_noise(&s, i);
        if (needed) random_noise_fill(&noise, fresh, COUNT / 2);
        sampler_step(&s, i, noise_pred + COUNT / 2, sample, needed ? fresh : NULL);
    }
    assert_memory_equal(sample, both + COUNT / 2, sizeof sample / 2);
    sampler_destroy(&s);
}

static int open_fixtures(void **state) {
    (void)state;
    error err;
    noise_schedule_init(&schedule);
    return case_file_open(&fixtures, "diffusion_samplers.safetensors", &err) ? 0 : -1;
}

static int close_fixtures(void **state) {
    (void)state;
    case_file_close(&fixtures);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_noise_schedule),   cmocka_unit_test(test_steps_like_diffusers),
        cmocka_unit_test(test_every_step_count), cmocka_unit_test(test_names),
        cmocka_unit_test(test_guidance),         cmocka_unit_test(test_loop_stops),
        cmocka_unit_test(test_noise_per_image),
    };
    return cmocka_run_group_tests(tests, open_fixtures, close_fixtures);
}
