/* The denoising loop with classifier-free guidance. The network is a callback. */
#ifndef VULORA_DIFFUSION_DENOISE_H
#define VULORA_DIFFUSION_DENOISE_H

#include "diffusion/random.h"
#include "diffusion/sampler.h"

#include <stdatomic.h>

/* Runs the network at step i (from 0): sample [n, 4, h, w] is the input as the network wants it, timestep the same for the whole batch.
   Writes the noise predicted with the prompt into cond and, unless uncond is NULL, that with the negative prompt into uncond (both like
   sample): in one batch of 2n or in two runs, as is cheaper. The step lets it change prompts on the way (prompt_stage_at). */
typedef bool (*denoise_predict)(void *user, int i, const float *sample, float timestep, float *cond, float *uncond, error *err);

/* After step i; sample [n, 4, h, w] is what the sampler has now (not scaled for the network). May be NULL. */
typedef void (*denoise_progress)(void *user, int i, int steps, const float *sample);

typedef struct denoise_options {
    denoise_predict predict;
    void *predict_user;
    denoise_progress progress;
    void *progress_user;
    const atomic_bool *cancel; /* checked before every step; may be NULL */
    float cfg;                 /* guidance: uncond + cfg * (cond - uncond); at 1 the network is not run for uncond */
    int images;                /* n */
    random_noise *noise;       /* [n], one an image, for ancestral samplers; may be NULL for the others */
} denoise_options;

typedef enum denoise_status { DENOISE_DONE, DENOISE_CANCELLED, DENOISE_FAILED } denoise_status;

/* The first sample: out [count] = unit noise [count] * the sampler's first sigma. May be in place. */
void denoise_start(const sampler_state *sampler, float *out, const float *noise);

/* sample [n, 4, h, w]: what denoise_start made, then the latents. Cancelled: the sample as far as it came. Failed: err says why; a
   network output that is not finite is a failure. */
denoise_status denoise_run(sampler_state *sampler, const denoise_options *options, float *sample, error *err);

#endif
