/* Samplers: from noise to latents in steps. A sampler is one row of the table in sampler.c and one function. */
#ifndef VULORA_DIFFUSION_SAMPLER_H
#define VULORA_DIFFUSION_SAMPLER_H

#include "diffusion/schedule.h"

#include <stddef.h>

struct sampler_state;

typedef struct sampler_kind {
    const char *name;    /* the command line's */
    const char *label;   /* webui's, in the PNG's parameters */
    const char *aliases; /* other programs' names, separated by spaces */
    timestep_rule rule;
    bool variance_preserving; /* the sample is image * sqrt(a) + noise * sqrt(1 - a), as the U-Net wants it; else image + noise * sigma */
    bool ancestral;           /* adds fresh noise in every step */
    int history;              /* predictions of earlier steps it remembers */
    void (*step)(struct sampler_state *sampler, int i, const float *noise_pred, float *sample, const float *noise);
} sampler_kind;

/* The table, for help texts and tests; index from 0, NULL behind the end. */
const sampler_kind *sampler_kind_at(int index);

/* By name, label or alias; case, spaces, - and _ do not matter and + is p ("DPM++ 2M", dpmpp_2m). NULL and err if there is none. */
const sampler_kind *sampler_kind_find(const char *name, error *err);

typedef struct sampler_state {
    const sampler_kind *kind;
    int steps;
    float *timesteps;       /* [steps], what the U-Net is told */
    float *sigmas;          /* [steps + 1] */
    float init_noise_sigma; /* first sample = unit noise * this */
    size_t count;           /* floats in a sample, over the whole batch */
    float *previous;        /* [history, count] */
} sampler_state;

/* count: floats in a sample. Refuses steps outside 1..SCHEDULE_MAX_STEPS. A failed create leaves nothing to destroy. */
bool sampler_create(sampler_state *sampler, const noise_schedule *schedule, const sampler_kind *kind, sigma_spacing spacing, int steps,
                    size_t count, error *err);
void sampler_destroy(sampler_state *sampler);

/* out: [count], what the U-Net gets at step i. */
void sampler_scale_input(const sampler_state *sampler, int i, float *out, const float *sample /* [count] */);

/* Whether step i wants fresh noise: an ancestral sampler, except at its end. */
bool sampler_needs_noise(const sampler_state *sampler, int i);

/* sample: [count], in and out; noise_pred: [count]; noise: [count] of unit variance where sampler_needs_noise, else NULL.
   Steps are taken in order from 0; step 0 starts anew, so a sampler serves one picture after another. */
void sampler_step(sampler_state *sampler, int i, const float *noise_pred, float *sample, const float *noise);

#endif
