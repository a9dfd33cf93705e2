#include "diffusion/denoise.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

typedef struct buffers {
    float *block;
    float *input, *cond, *uncond, *noise; /* [count] each; uncond and noise NULL when not needed */
} buffers;

static bool buffers_create(buffers *b, const sampler_state *sampler, bool guided, error *err) {
    size_t count = sampler->count, arrays = 2 + (size_t)guided + (size_t)sampler->kind->ancestral;
    b->block = memory_try_aligned(arrays * count * sizeof(float));
    if (!b->block)
        return error_set(err, "no memory for the sampler's %zu arrays of %zu numbers; make the picture or the batch smaller", arrays,
                         count);
    float *next = b->block + 2 * count;
    b->input = b->block;
    b->cond = b->block + count;
    b->uncond = guided ? next : NULL;
    b->noise = sampler->kind->ancestral ? next + (guided ? count : 0) : NULL;
    return true;
}

/* Guidance, into cond (Ho and Salimans 2022, arXiv 2207.12598, with cfg = 1 + w). */
static void guide(float *cond, const float *uncond, float cfg, size_t count) {
    for (size_t k = 0; k < count; k++) cond[k] = uncond[k] + cfg * (cond[k] - uncond[k]);
}

static bool all_finite(const float *values, size_t count) {
    for (size_t k = 0; k < count; k++) {
        if (!isfinite(values[k])) return false;
    }
    return true;
}

static bool denoise_step(sampler_state *sampler, const denoise_options *o, int i, const buffers *b, float *sample, error *err) {
    sampler_scale_input(sampler, i, b->input, sample);
    if (!o->predict(o->predict_user, i, b->input, sampler->timesteps[i], b->cond, b->uncond, err)) return false;
    if (b->uncond) guide(b->cond, b->uncond, o->cfg, sampler->count);
    if (!all_finite(b->cond, sampler->count))
        return error_set(
            err,
            "step %d of %d: the U-Net's output is not finite (NaN or infinity); try --precision fp32, a smaller --lora weight, "
            "or without --lora",
            i + 1, sampler->steps);
    float *noise = NULL;
    if (sampler_needs_noise(sampler, i)) {
        size_t each = sampler->count / (size_t)o->images;
        noise = b->noise;
        for (int n = 0; n < o->images; n++) random_noise_fill(&o->noise[n], noise + (size_t)n * each, each);
    }
    sampler_step(sampler, i, b->cond, sample, noise);
    return true;
}

void denoise_start(const sampler_state *sampler, float *out, const float *noise) {
    for (size_t k = 0; k < sampler->count; k++) out[k] = noise[k] * sampler->init_noise_sigma;
}

denoise_status denoise_run(sampler_state *sampler, const denoise_options *o, float *sample, error *err) {
    if (sampler->kind->ancestral && !o->noise) {
        error_set(err, "sampler %s draws noise in every step and was given no generator", sampler->kind->name);
        return DENOISE_FAILED;
    }
    buffers b = {0};
    if (!buffers_create(&b, sampler, o->cfg != 1.0f, err)) return DENOISE_FAILED;
    denoise_status status = DENOISE_DONE;
    for (int i = 0; i < sampler->steps && status == DENOISE_DONE; i++) {
        if (o->cancel && atomic_load(o->cancel)) {
            status = DENOISE_CANCELLED;
        } else if (!denoise_step(sampler, o, i, &b, sample, err)) {
            status = DENOISE_FAILED;
        } else if (o->progress) {
            o->progress(o->progress_user, i, sampler->steps, sample);
        }
    }
    free(b.block);
    return status;
}
