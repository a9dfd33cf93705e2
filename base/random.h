/* Random numbers as pure functions of (seed, stream, counter): nothing to save for an exact resume, no order of calls to keep. Two
   generators, since what they drew is in saved states, files and fixtures: splitmix64 for single numbers, Philox for whole tensors (which
   diffusion/random.h needs anyway, being the generator of PyTorch on CUDA). Noise that must equal other programs' is there, not here. */
#ifndef VULORA_BASE_RANDOM_H
#define VULORA_BASE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* 64 random bits: three rounds of the splitmix64 finalizer (Steele, Lea, Flood 2014). */
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter);
/* In [0, 1), 53 bits. */
double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter);
/* In 0 .. n - 1 (n > 0); the bias of the multiply-shift is below n / 2^64. */
uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t n);
/* order: [count], a permutation of 0 .. count - 1 (Fisher and Yates), without bias; count < 2^32. */
void random_order(uint64_t seed, uint64_t stream, uint32_t *order, size_t count);

/* One Philox4x32-10 block (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). */
void random_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* What a training's fills are for. Draws of different streams are independent; a stream's number never changes, because saved states rest
   on it. */
typedef enum random_stream {
    RANDOM_STREAM_NOISE = 1,    /* noise added to the latents */
    RANDOM_STREAM_TIMESTEP = 2, /* training timesteps */
    RANDOM_STREAM_LATENT = 3,   /* sampling from the VAE's posterior */
    RANDOM_STREAM_DROPOUT = 4,  /* of elements and ranks, in a batch */
    RANDOM_STREAM_MODULES = 5,  /* modules left out of an update */
    RANDOM_STREAM_BLOCK = 6     /* ranks that an update of a DyLoRA trains */
} random_stream;

/* The counter of one sample of one step. */
uint64_t random_counter(uint32_t step, uint32_t sample);

/* Philox. A longer fill begins with the shorter one. Mean 0, variance 1. */
void random_normal_fill(uint64_t seed, uint32_t stream, uint64_t counter, float *out, size_t n);
/* 0 <= x < bound; bound >= 1. */
void random_integers_fill(uint64_t seed, uint32_t stream, uint64_t counter, uint32_t bound, uint32_t *out, size_t n);

#endif
