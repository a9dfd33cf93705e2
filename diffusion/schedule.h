/* Stable Diffusion's noise schedule, and how a number of sampling steps is spread over it. */
#ifndef VULORA_DIFFUSION_SCHEDULE_H
#define VULORA_DIFFUSION_SCHEDULE_H

#include "base/error.h"

#include <stdbool.h>

enum { SCHEDULE_TIMESTEPS = 1000 }; /* training timesteps: 0..999 */

/* Most sampling steps: with 1000, DDIM's timesteps (1, 2, ..., 1000) would leave the schedule. */
enum { SCHEDULE_MAX_STEPS = 999 };

/* alphas_cumprod[t]: the share of the image's variance left at timestep t ("alpha bar" of Ho et al. 2020), betas "scaled linear" from
   0.00085 to 0.012, bit for bit as diffusers computes it. sigma = sqrt((1 - a) / a): noise per unit of image. */
typedef struct noise_schedule {
    float alphas_cumprod[SCHEDULE_TIMESTEPS];
    float sigmas[SCHEDULE_TIMESTEPS];
} noise_schedule;

void noise_schedule_init(noise_schedule *schedule);

/* noisy = image * latents + noise * epsilon, for a timestep of 0..999 (equation 4 of Ho et al. 2020). */
void noise_schedule_add_noise(const noise_schedule *schedule, int timestep, float *image, float *noise);

/* The timestep, in general between two whole ones, whose sigma this is: linear in log sigma, clamped to 0..999. */
double noise_schedule_timestep(const noise_schedule *schedule, double sigma);

/* --schedule: how sigmas are spaced. */
typedef enum sigma_spacing {
    SIGMA_SPACING_DEFAULT, /* evenly in timesteps, by the rule of the sampler's row */
    SIGMA_SPACING_KARRAS,  /* evenly in sigma^(1/7) (Karras et al. 2022, equation 5) */
    SIGMA_SPACING_COUNT
} sigma_spacing;

const char *sigma_spacing_name(sigma_spacing spacing);  /* "default", "karras": the command line's */
const char *sigma_spacing_label(sigma_spacing spacing); /* webui's "Schedule type" */
bool sigma_spacing_find(sigma_spacing *spacing, const char *name, error *err);

/* The three ways in which diffusers' schedulers, loaded from SD1.5's scheduler config, choose timesteps. What `default` and `karras` are:
 */
typedef enum timestep_rule {
    /* DDIM. default: multiples of 1000 / steps, plus 1; the last step ends at sigmas[0], not at 0 (set_alpha_to_one is false).
       karras: as TIMESTEPS_BETWEEN, since diffusers' DDIM has none and first-order DPM-Solver++ is DDIM. */
    TIMESTEPS_LEADING,
    /* Euler, Euler a. default: evenly from 999 to 0, both included, fractions kept; the last step ends at 0. karras: between the sigmas of
       the default's ends, timesteps with fractions. (diffusers' Euler a has no karras and ignores the flag; this is Euler's.) */
    TIMESTEPS_LINSPACE,
    /* DPM++ 2M. default: steps + 1 even points from 999 to 0, rounded, the last left out; ends at 0. karras: over the whole range of
       sigmas, timesteps rounded. */
    TIMESTEPS_BETWEEN
} timestep_rule;

/* timesteps: [steps], sigmas: [steps + 1], steps in 1..SCHEDULE_MAX_STEPS. */
void noise_schedule_spread(const noise_schedule *schedule, timestep_rule rule, sigma_spacing spacing, int steps, float *timesteps,
                           float *sigmas);

#endif
