#include "diffusion/sampler.h"

#include "base/memory.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the samplers ---
   Coefficients are computed in double from the float sigmas, the arrays are float. In variance-preserving form
   sample = image * scale + noise * spread with scale = 1 / sqrt(1 + sigma^2) and spread = sigma * scale. */

static double scale_of(double sigma) { return 1 / sqrt(sigma * sigma + 1); }

/* Song et al. 2020 (arXiv 2010.02502), equation 12 with eta = 0: the noise predicted is kept, its share shrinks. */
static void step_ddim(sampler_state *s, int i, const float *noise_pred, float *sample, const float *noise) {
    (void)noise;
    double sigma = (double)s->sigmas[i], next = (double)s->sigmas[i + 1], scale = scale_of(sigma), next_scale = scale_of(next);
    float spread = (float)(sigma * scale), inverse = (float)(1 / scale), to = (float)next_scale, direction = (float)(next * next_scale);
    for (size_t k = 0; k < s->count; k++) {
        float image = (sample[k] - spread * noise_pred[k]) * inverse;
        sample[k] = to * image + direction * noise_pred[k];
    }
}

/* Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without its second-order correction: d(sample)/d(sigma) is the predicted noise. */
static void step_euler(sampler_state *s, int i, const float *noise_pred, float *sample, const float *noise) {
    (void)noise;
    float change = s->sigmas[i + 1] - s->sigmas[i];
    for (size_t k = 0; k < s->count; k++) sample[k] += change * noise_pred[k];
}

/* Euler down to sigma_down, then noise of sigma_up, so that the two add up to the next sigma (k-diffusion's ancestral step, eta 1). */
static void step_euler_ancestral(sampler_state *s, int i, const float *noise_pred, float *sample, const float *noise) {
    double from = (double)s->sigmas[i], to = (double)s->sigmas[i + 1];
    double up = sqrt(to * to * (from * from - to * to) / (from * from)), down = sqrt(fmax(to * to - up * up, 0));
    float change = (float)(down - from), fresh = (float)up;
    for (size_t k = 0; k < s->count; k++) sample[k] += change * noise_pred[k];
    if (!noise) return;
    for (size_t k = 0; k < s->count; k++) sample[k] += fresh * noise[k];
}

/* DPM-Solver++(2M), midpoint (Lu et al. 2022, arXiv 2211.01095, algorithm 2): two predictions of the image, extrapolated in the log of
   the signal-to-noise ratio. First order in the first step and the last one (where sigma is 0). */
static void step_dpmpp_2m(sampler_state *s, int i, const float *noise_pred, float *sample, const float *noise) {
    (void)noise;
    double sigma = (double)s->sigmas[i], next = (double)s->sigmas[i + 1], scale = scale_of(sigma), next_scale = scale_of(next);
    /* lambda = log(scale / spread) = -log(sigma); exp(-h) = next / sigma */
    double shrink = next / sigma;
    float keep = (float)(next * next_scale / (sigma * scale)), gain = (float)(next_scale * (1 - shrink));
    float spread = (float)(sigma * scale), inverse = (float)(1 / scale), extra = 0;
    if (i > 0 && i < s->steps - 1) {
        double h = log(sigma / next), before = log((double)s->sigmas[i - 1] / sigma);
        extra = (float)(h / before / 2);
    }
    for (size_t k = 0; k < s->count; k++) {
        float image = (sample[k] - spread * noise_pred[k]) * inverse;
        float slope = extra != 0 ? image - s->previous[k] : 0;
        s->previous[k] = image;
        sample[k] = keep * sample[k] + gain * (image + extra * slope);
    }
}

static const sampler_kind kinds[] = {
    {"ddim", "DDIM", "", TIMESTEPS_LEADING, .variance_preserving = true, .step = step_ddim},
    {"euler", "Euler", "k_euler euler_discrete", TIMESTEPS_LINSPACE, .step = step_euler},
    {"euler-a", "Euler a", "k_euler_a euler_ancestral k_euler_ancestral", TIMESTEPS_LINSPACE, .ancestral = true,
     .step = step_euler_ancestral},
    {"dpmpp-2m", "DPM++ 2M", "k_dpmpp_2m dpmsolver++ dpmsolver_multistep", TIMESTEPS_BETWEEN, .variance_preserving = true, .history = 1,
     .step = step_dpmpp_2m},
};

/* --- the table --- */

enum { KIND_COUNT = sizeof kinds / sizeof *kinds };

const sampler_kind *sampler_kind_at(int index) { return index >= 0 && index < KIND_COUNT ? &kinds[index] : NULL; }

/* Compares up to a zero (or, in b, a space when `word`), without case, spaces, - and _; + equals p. */
static bool same_name(const char *a, const char *b, bool word) {
    for (;; a++, b++) {
        while (*a == ' ' || *a == '-' || *a == '_') a++;
        while ((*b == ' ' && !word) || *b == '-' || *b == '_') b++;
        char x = *a == '+' ? 'p' : (char)tolower((unsigned char)*a);
        char y = *b == '+' ? 'p' : (char)tolower((unsigned char)*b);
        if (word && y == ' ') y = 0;
        if (x != y) return false;
        if (!x) return true;
    }
}

static bool kind_has_name(const sampler_kind *kind, const char *name) {
    if (same_name(name, kind->name, false) || same_name(name, kind->label, false)) return true;
    for (const char *alias = kind->aliases; *alias; alias += strspn(alias, " ")) {
        if (same_name(name, alias, true)) return true;
        alias += strcspn(alias, " ");
    }
    return false;
}

const sampler_kind *sampler_kind_find(const char *name, error *err) {
    for (int i = 0; i < KIND_COUNT; i++) {
        if (kind_has_name(&kinds[i], name)) return &kinds[i];
    }
    char known[256] = "";
    size_t length = 0;
    for (int i = 0; i < KIND_COUNT && length < sizeof known; i++)
        length += (size_t)snprintf(known + length, sizeof known - length, "%s%s", i ? ", " : "", kinds[i].name);
    error_set(err, "unknown sampler '%s'; known are %s", name, known);
    return NULL;
}

/* --- a sampler at work --- */

bool sampler_create(sampler_state *s, const noise_schedule *schedule, const sampler_kind *kind, sigma_spacing spacing, int steps,
                    size_t count, error *err) {
    if (steps < 1 || steps > SCHEDULE_MAX_STEPS) return error_set(err, "%d sampling steps; give 1 to %d", steps, SCHEDULE_MAX_STEPS);
    memset(s, 0, sizeof *s);
    if (kind->history) {
        s->previous = memory_try_aligned((size_t)kind->history * count * sizeof(float));
        if (!s->previous)
            return error_set(err, "no memory for the sampler's history of %zu numbers; make the picture or the batch smaller", count);
    }
    s->kind = kind;
    s->steps = steps;
    s->count = count;
    s->timesteps = memory_new((size_t)steps, sizeof(float));
    s->sigmas = memory_new((size_t)steps + 1, sizeof(float));
    noise_schedule_spread(schedule, kind->rule, spacing, steps, s->timesteps, s->sigmas);
    s->init_noise_sigma = kind->variance_preserving ? 1 : s->sigmas[0];
    return true;
}

void sampler_destroy(sampler_state *s) {
    free(s->timesteps);
    free(s->sigmas);
    free(s->previous);
    memset(s, 0, sizeof *s);
}

void sampler_scale_input(const sampler_state *s, int i, float *out, const float *sample) {
    float scale = s->kind->variance_preserving ? 1 : (float)scale_of((double)s->sigmas[i]);
    for (size_t k = 0; k < s->count; k++) out[k] = scale * sample[k];
}

bool sampler_needs_noise(const sampler_state *s, int i) { return s->kind->ancestral && s->sigmas[i + 1] > 0; }

void sampler_step(sampler_state *s, int i, const float *noise_pred, float *sample, const float *noise) {
    s->kind->step(s, i, noise_pred, sample, noise);
}
