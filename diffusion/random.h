/* The noise of generated images: it continues per image and equals that of the programs whose seeds users share (stable-diffusion-webui,
   PyTorch). Draws that are functions of a place in a training are in base/random.h. */
#ifndef VULORA_DIFFUSION_RANDOM_H
#define VULORA_DIFFUSION_RANDOM_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whose noise an image starts from. */
typedef enum random_source {
    RANDOM_SOURCE_GPU, /* PyTorch on CUDA up to the size of its grid: what webui makes by default on a GPU, and everywhere as its source
                          "NV" */
    RANDOM_SOURCE_CPU, /* PyTorch on the CPU: diffusers with a CPU generator, ComfyUI, webui's source "CPU" */
    RANDOM_SOURCE_COUNT
} random_source;

/* "gpu" or "cpu". */
const char *random_source_name(random_source source);
bool random_source_find(random_source *source, const char *name, error *err);

/* The noise of one image: the initial latents first, then what an ancestral sampler asks for at each step. */
typedef struct random_noise {
    random_source source;
    uint64_t seed;
    uint32_t offset;               /* GPU: fills made so far */
    uint32_t state[624], position; /* CPU: Mersenne Twister */
    bool has_spare;                /* CPU, fills of fewer than 16: the second number of a pair */
    double spare;
} random_noise;

void random_noise_init(random_noise *noise, random_source source, uint64_t seed);

/* What torch.randn(n, generator=...) gives next, to about 1e-6 (PyTorch's own vectorised log and cos differ by that between machines). */
void random_noise_fill(random_noise *noise, float *out, size_t n);

#endif
