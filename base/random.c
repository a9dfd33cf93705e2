#include "base/random.h"

#include <math.h>
#include <string.h>

#define PI 3.14159265358979323846

/* --- single numbers: splitmix64 --- */

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

void random_order(uint64_t seed, uint64_t stream, uint32_t *order, size_t count) {
    for (size_t i = 0; i < count; i++) order[i] = (uint32_t)i;
    uint64_t drawn = 0;
    for (size_t i = count; i > 1; i--) {
        /* Below i without bias (Lemire 2019): 32 random bits times i, the few low products that would favour some values drawn again. */
        uint64_t product;
        uint32_t bound = (uint32_t)i, unfair = (uint32_t)(-bound) % bound;
        do product = (random_bits(seed, stream, drawn++) >> 32) * bound;
        while ((uint32_t)product < unfair);
        size_t j = (size_t)(product >> 32);
        uint32_t kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}

/* --- fills: Philox --- */

void random_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

uint64_t random_counter(uint32_t step, uint32_t sample) { return (uint64_t)step << 32 | sample; }

/* Four words; `block` counts them within one (seed, stream, counter). */
static void draw_block(uint64_t seed, uint32_t stream, uint64_t counter, uint32_t block, uint32_t words[4]) {
    const uint32_t c[4] = {block, stream, (uint32_t)counter, (uint32_t)(counter >> 32)};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    random_philox(c, key, words);
}

/* Box-Muller on two words, in double so that the last bit does not hang on a machine's logf. */
static void draw_normals(uint32_t a, uint32_t b, float out[2]) {
    double radius = sqrt(-2 * log(((double)a + 0.5) * 0x1p-32)), angle = 2 * PI * ((double)b + 0.5) * 0x1p-32;
    out[0] = (float)(radius * cos(angle));
    out[1] = (float)(radius * sin(angle));
}

void random_normal_fill(uint64_t seed, uint32_t stream, uint64_t counter, float *out, size_t n) {
    for (size_t i = 0; i < n; i += 4) {
        uint32_t words[4];
        float normals[4];
        draw_block(seed, stream, counter, (uint32_t)(i / 4), words);
        draw_normals(words[0], words[1], normals);
        draw_normals(words[2], words[3], normals + 2);
        memcpy(out + i, normals, (n - i < 4 ? n - i : 4) * sizeof(float));
    }
}

/* floor(bound * r / 2^64) for the 64-bit r = high:low; the bias is below 2^-32. */
static uint32_t scale_to_bound(uint32_t high, uint32_t low, uint32_t bound) {
    return (uint32_t)(((uint64_t)high * bound + ((uint64_t)low * bound >> 32)) >> 32);
}

void random_integers_fill(uint64_t seed, uint32_t stream, uint64_t counter, uint32_t bound, uint32_t *out, size_t n) {
    uint32_t words[4];
    for (size_t i = 0; i < n; i++) {
        if (i % 2 == 0) draw_block(seed, stream, counter, (uint32_t)(i / 2), words);
        out[i] = scale_to_bound(words[i % 2 * 2], words[i % 2 * 2 + 1], bound);
    }
}
