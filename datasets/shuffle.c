#include "datasets/shuffle.h"

static uint64_t mix(uint64_t x) {
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

uint64_t shuffle_random(uint64_t seed, uint64_t stream, uint64_t index) { return mix(mix(mix(seed) ^ stream) ^ index); }

void shuffle_order(uint64_t seed, uint64_t stream, uint32_t *order, size_t count) {
    for (size_t i = 0; i < count; i++) order[i] = (uint32_t)i;
    uint64_t drawn = 0;
    for (size_t i = count; i > 1; i--) {
        /* Below i without bias (Lemire 2019): 32 random bits times i, the few low products that would favour some values drawn again. */
        uint64_t product;
        uint32_t bound = (uint32_t)i, unfair = (uint32_t)(-bound) % bound;
        do product = (shuffle_random(seed, stream, drawn++) >> 32) * bound;
        while ((uint32_t)product < unfair);
        size_t j = (size_t)(product >> 32);
        uint32_t kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}
