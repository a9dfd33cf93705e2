/* Random numbers. Two needs, two interfaces:
   - training draws are pure functions of (seed, stream, counter), so that a resumed run draws what an uninterrupted one would have drawn;
   - generation noise continues per image and equals that of the programs whose seeds users share (stable-diffusion-webui, PyTorch). */
#ifndef VULORA_DIFFUSION_RANDOM_H
#define VULORA_DIFFUSION_RANDOM_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One Philox4x32-10 block (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). */
void random_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* What a draw is for. Draws of different streams are independent; a stream's number never changes, because saved states rest on it. */
typedef enum random_stream {
    RANDOM_STREAM_NOISE = 1,    /* noise added to the latents */
    RANDOM_STREAM_TIMESTEP = 2, /* training timesteps */
    RANDOM_STREAM_LATENT = 3,   /* sampling from the VAE's posterior */
    RANDOM_STREAM_SHUFFLE = 4,  /* order of the images in an epoch */
    RANDOM_STREAM_FLIP = 5,
    RANDOM_STREAM_CROP = 6,
    RANDOM_STREAM_CAPTION = 7, /* tag shuffling and dropping, caption dropping */
    RANDOM_STREAM_INIT = 8,    /* first values of adapter weights */
    RANDOM_STREAM_DROPOUT = 9
} random_stream;

/* The counter of one sample of one step. */
uint64_t random_counter(uint32_t step, uint32_t sample);

/* Pure functions of (seed, stream, counter): the same arguments give the same numbers, and a longer fill begins with the shorter one. */
void random_normal_fill(uint64_t seed, uint32_t stream, uint64_t counter, float *out, size_t n);  /* mean 0, variance 1 */
void random_uniform_fill(uint64_t seed, uint32_t stream, uint64_t counter, float *out, size_t n); /* 0 <= x < 1, 24 bits */
/* 0 <= x < bound; bound >= 1. */
void random_integers_fill(uint64_t seed, uint32_t stream, uint64_t counter, uint32_t bound, uint32_t *out, size_t n);
/* out: [n], a uniformly drawn order of 0..n-1 (Fisher-Yates). */
void random_permutation(uint64_t seed, uint32_t stream, uint64_t counter, uint32_t *out, uint32_t n);

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
