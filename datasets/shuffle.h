/* Random choices of the data side. Every value is a pure function of (seed, stream, index): nothing is carried from draw to draw, so a
   resumed run sees what an uninterrupted one would have seen. */
#ifndef VULORA_DATASETS_SHUFFLE_H
#define VULORA_DATASETS_SHUFFLE_H

#include <stddef.h>
#include <stdint.h>

/* splitmix64's finalizer (Steele, Lea, Flood 2014) over the three numbers in turn. */
uint64_t shuffle_random(uint64_t seed, uint64_t stream, uint64_t index);

/* A permutation of 0..count-1 (Fisher and Yates), without bias; count < 2^32. */
void shuffle_order(uint64_t seed, uint64_t stream, uint32_t *order, size_t count);

#endif
