/* Random numbers as a pure function of (seed, stream, counter): nothing to save for an exact resume, no order of calls to keep. */
#ifndef VULORA_BASE_RANDOM_H
#define VULORA_BASE_RANDOM_H

#include <stdint.h>

/* 64 random bits: three rounds of the splitmix64 finalizer (Steele, Lea, Flood 2014). */
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter);
/* In [0, 1), 53 bits. */
double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter);
/* In 0 .. n - 1 (n > 0); the bias of the multiply-shift is below n / 2^64. */
uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t n);

#endif
