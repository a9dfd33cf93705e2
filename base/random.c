#include "base/random.h"

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter) { return mix(mix(mix(seed) ^ stream) ^ counter); }

double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter) {
    return (double)(random_bits(seed, stream, counter) >> 11) * 0x1p-53;
}

/* High half of the 128-bit product, from 32-bit pieces. */
uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t n) {
    uint64_t bits = random_bits(seed, stream, counter);
    uint64_t low = (bits & 0xffffffffu) * (n & 0xffffffffu), a = (bits >> 32) * (n & 0xffffffffu), b = (bits & 0xffffffffu) * (n >> 32);
    uint64_t middle = (low >> 32) + (a & 0xffffffffu) + (b & 0xffffffffu);
    return (bits >> 32) * (n >> 32) + (a >> 32) + (b >> 32) + (middle >> 32);
}
