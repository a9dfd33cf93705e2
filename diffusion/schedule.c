#include "diffusion/schedule.h"

#include <math.h>
#include <string.h>
#include <strings.h>

void noise_schedule_init(noise_schedule *schedule) {
    /* The square roots of the betas are evenly spaced. PyTorch's linspace works from both ends with a fused multiply-add (exact in double
       here), and its cumprod of float32 accumulates in double: so the results are the same bits. */
    const float first = (float)sqrt(0.00085), last = (float)sqrt(0.012), step = (last - first) / (float)(SCHEDULE_TIMESTEPS - 1);
    double product = 1;
    for (int t = 0; t < SCHEDULE_TIMESTEPS; t++) {
        double root =
            t < SCHEDULE_TIMESTEPS / 2 ? (double)first + (double)step * t : (double)last - (double)step * (SCHEDULE_TIMESTEPS - 1 - t);
        volatile float beta = (float)root * (float)root; /* rounded before the subtraction: no contraction */
        product *= (double)(1.0f - beta);
        float alpha = (float)product;
        schedule->alphas_cumprod[t] = alpha;
        schedule->sigmas[t] = sqrtf((1.0f - alpha) / alpha);
    }
}

void noise_schedule_add_noise(const noise_schedule *schedule, int timestep, float *image, float *noise) {
    float alpha = schedule->alphas_cumprod[timestep];
    *image = sqrtf(alpha);
    *noise = sqrtf(1.0f - alpha);
}

/* In float32, as diffusers has it: it decides how a timestep at a half is rounded. */
static double log_sigma(const noise_schedule *schedule, int t) { return (double)logf(schedule->sigmas[t]); }

double noise_schedule_timestep(const noise_schedule *schedule, double sigma) {
    double wanted = log(sigma > 1e-10 ? sigma : 1e-10);
    int low = 0, high = SCHEDULE_TIMESTEPS - 1; /* to find: the last t with sigmas[t] <= sigma, at most 998 */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (log_sigma(schedule, middle) <= wanted)
            low = middle;
        else
            high = middle;
    }
    double below = log_sigma(schedule, low), above = log_sigma(schedule, low + 1);
    double share = (wanted - below) / (above - below);
    return low + fmin(fmax(share, 0), 1);
}

/* --- spacing names --- */

static const struct {
    const char *name, *label;
} spacings[SIGMA_SPACING_COUNT] = {
    [SIGMA_SPACING_DEFAULT] = {"default", "Uniform"},
    [SIGMA_SPACING_KARRAS] = {"karras", "Karras"},
};

const char *sigma_spacing_name(sigma_spacing spacing) { return spacings[spacing].name; }

const char *sigma_spacing_label(sigma_spacing spacing) { return spacings[spacing].label; }

bool sigma_spacing_find(sigma_spacing *spacing, const char *name, error *err) {
    for (int i = 0; i < SIGMA_SPACING_COUNT; i++) {
        if (strcasecmp(name, spacings[i].name) == 0 || strcasecmp(name, spacings[i].label) == 0) {
            *spacing = (sigma_spacing)i;
            return true;
        }
    }
    return error_set(err, "unknown schedule '%s'; known are default and karras", name);
}

/* --- spreading --- */

/* numpy.interp of the training sigmas at a timestep. */
static double sigma_at(const noise_schedule *schedule, double timestep) {
    int low = (int)timestep;
    if (low >= SCHEDULE_TIMESTEPS - 1) return (double)schedule->sigmas[SCHEDULE_TIMESTEPS - 1];
    double below = (double)schedule->sigmas[low], above = (double)schedule->sigmas[low + 1];
    return below + (above - below) * (timestep - low);
}

static void spread_default(const noise_schedule *schedule, timestep_rule rule, int steps, float *timesteps, float *sigmas) {
    const double last = SCHEDULE_TIMESTEPS - 1;
    for (int i = 0; i < steps; i++) {
        int from_end = steps - 1 - i;
        double t = 0;
        switch (rule) {
        case TIMESTEPS_LEADING: t = from_end * (SCHEDULE_TIMESTEPS / steps) + 1; break;
        case TIMESTEPS_LINSPACE: t = steps > 1 ? (double)(float)(from_end * (last / (steps - 1))) : 0; break;
        case TIMESTEPS_BETWEEN: t = nearbyint((from_end + 1) * (last / steps)); break;
        }
        timesteps[i] = (float)t;
        sigmas[i] = (float)sigma_at(schedule, t);
    }
    sigmas[steps] = rule == TIMESTEPS_LEADING ? schedule->sigmas[0] : 0;
}

static void spread_karras(const noise_schedule *schedule, timestep_rule rule, int steps, float *timesteps, float *sigmas) {
    const double rho = 7;
    /* Euler takes its ends from the default spacing, which for a single step is timestep 0 alone. */
    bool single = rule == TIMESTEPS_LINSPACE && steps == 1;
    double low = pow((double)schedule->sigmas[0], 1 / rho);
    double high = pow((double)schedule->sigmas[single ? 0 : SCHEDULE_TIMESTEPS - 1], 1 / rho);
    for (int i = 0; i < steps; i++) {
        double ramp = steps > 1 ? (double)i / (steps - 1) : 0, sigma = pow(high + ramp * (low - high), rho);
        double t = noise_schedule_timestep(schedule, sigma);
        timesteps[i] = (float)(rule == TIMESTEPS_LINSPACE ? t : nearbyint(t));
        sigmas[i] = (float)sigma;
    }
    sigmas[steps] = 0;
}

void noise_schedule_spread(const noise_schedule *schedule, timestep_rule rule, sigma_spacing spacing, int steps, float *timesteps,
                           float *sigmas) {
    switch (spacing) {
    case SIGMA_SPACING_KARRAS: spread_karras(schedule, rule, steps, timesteps, sigmas); break;
    case SIGMA_SPACING_DEFAULT:
    case SIGMA_SPACING_COUNT: spread_default(schedule, rule, steps, timesteps, sigmas); break;
    }
}
