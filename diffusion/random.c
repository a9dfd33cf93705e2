#include "diffusion/random.h"

#include "base/random.h"

#include <math.h>
#include <string.h>

#define PI 3.14159265358979323846

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
