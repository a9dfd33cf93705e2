#include "diffusion/random.h"

#include <math.h>
#include <string.h>

#define PI 3.14159265358979323846

/* --- Philox and the draws of training --- */

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

void random_uniform_fill(uint64_t seed, uint32_t stream, uint64_t counter, float *out, size_t n) {
    uint32_t words[4];
    for (size_t i = 0; i < n; i++) {
        if (i % 4 == 0) draw_block(seed, stream, counter, (uint32_t)(i / 4), words);
        out[i] = (float)(words[i % 4] >> 8) * 0x1p-24f;
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

void random_permutation(uint64_t seed, uint32_t stream, uint64_t counter, uint32_t *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t words[4];
        draw_block(seed, stream, counter, n - i, words);
        uint32_t j = scale_to_bound(words[0], words[1], i), held = out[i - 1];
        out[i - 1] = out[j];
        out[j] = held;
    }
}

/* --- noise of generated images --- */

static const char *const source_names[RANDOM_SOURCE_COUNT] = {[RANDOM_SOURCE_GPU] = "gpu", [RANDOM_SOURCE_CPU] = "cpu"};

const char *random_source_name(random_source source) { return source_names[source]; }

bool random_source_find(random_source *source, const char *name, error *err) {
    for (int i = 0; i < RANDOM_SOURCE_COUNT; i++) {
        if (strcmp(name, source_names[i]) == 0) {
            *source = (random_source)i;
            return true;
        }
    }
    return error_set(err, "unknown noise source '%s'; known are gpu (stable-diffusion-webui's default) and cpu (diffusers, ComfyUI)", name);
}

/* MT19937 (Matsumoto and Nishimura 1998), seeded with the low 32 bits as PyTorch does. */
static void twister_seed(random_noise *noise) {
    noise->state[0] = (uint32_t)noise->seed;
    for (uint32_t i = 1; i < 624; i++) {
        uint32_t before = noise->state[i - 1];
        noise->state[i] = 1812433253u * (before ^ before >> 30) + i;
    }
    noise->position = 624;
}

static void twister_advance(uint32_t *state) {
    for (int i = 0; i < 624; i++) {
        uint32_t mixed = (state[i] & 0x80000000u) | (state[(i + 1) % 624] & 0x7fffffffu);
        state[i] = state[(i + 397) % 624] ^ mixed >> 1 ^ (mixed & 1 ? 0x9908b0dfu : 0);
    }
}

static uint32_t twister_next(random_noise *noise) {
    if (noise->position == 624) {
        twister_advance(noise->state);
        noise->position = 0;
    }
    uint32_t y = noise->state[noise->position++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static float twister_uniform(random_noise *noise) { return (float)(twister_next(noise) & 0xffffff) * 0x1p-24f; }

static double twister_uniform_double(random_noise *noise) {
    uint64_t high = twister_next(noise), low = twister_next(noise);
    return (double)((high << 32 | low) & ((1ull << 53) - 1)) * 0x1p-53;
}

/* PyTorch's vectorised Box-Muller: of 16 uniforms, the first eight give the radii and the last eight the angles. */
static void normals_of_16(float *data) {
    for (int i = 0; i < 8; i++) {
        float angle = 2.0f * (float)PI * data[i + 8];
        double radius = sqrt(-2 * log(1.0 - (double)data[i]));
        data[i] = (float)(radius * cos((double)angle));
        data[i + 8] = (float)(radius * sin((double)angle));
    }
}

/* Fewer than 16: pairs in double, the second of a pair kept for later, also for the next fill. */
static float twister_normal(random_noise *noise) {
    if (noise->has_spare) {
        noise->has_spare = false;
        return (float)noise->spare;
    }
    double angle = 2 * PI * twister_uniform_double(noise), radius = sqrt(-2 * log1p(-twister_uniform_double(noise)));
    noise->spare = radius * sin(angle);
    noise->has_spare = true;
    return (float)(radius * cos(angle));
}

static void fill_cpu(random_noise *noise, float *out, size_t n) {
    if (n < 16) {
        for (size_t i = 0; i < n; i++) out[i] = twister_normal(noise);
        return;
    }
    for (size_t i = 0; i < n; i++) out[i] = twister_uniform(noise);
    for (size_t i = 0; i + 16 <= n; i += 16) normals_of_16(out + i);
    if (n % 16 != 0) { /* the last 16 are drawn again, the overlap included */
        float *tail = out + n - 16;
        for (int i = 0; i < 16; i++) tail[i] = twister_uniform(noise);
        normals_of_16(tail);
    }
}

/* cuRAND's generator as PyTorch runs it: one thread an element, which is the sub-sequence; one offset a call; of each block only the
   first two words are used, and of their Box-Muller pair only the sine. */
static void fill_gpu(random_noise *noise, float *out, size_t n) {
    const double to_unit = 0x1p-32, to_angle = (double)(float)(2 * PI * 0x1p-32);
    const uint32_t key[2] = {(uint32_t)noise->seed, (uint32_t)(noise->seed >> 32)};
    for (size_t i = 0; i < n; i++) {
        const uint32_t counter[4] = {noise->offset, 0, (uint32_t)i, (uint32_t)((uint64_t)i >> 32)};
        uint32_t words[4];
        random_philox(counter, key, words);
        double u = (double)words[0] * to_unit + to_unit / 2, angle = (double)words[1] * to_angle + to_angle / 2;
        out[i] = (float)(sqrt(-2 * log(u)) * sin(angle));
    }
    noise->offset++;
}

void random_noise_init(random_noise *noise, random_source source, uint64_t seed) {
    memset(noise, 0, sizeof *noise);
    noise->source = source;
    noise->seed = seed;
    twister_seed(noise);
}

void random_noise_fill(random_noise *noise, float *out, size_t n) {
    if (noise->source == RANDOM_SOURCE_CPU)
        fill_cpu(noise, out, n);
    else
        fill_gpu(noise, out, n);
}
