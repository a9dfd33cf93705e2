#include "tests/support/noise.h"

#include "base/memory.h"

static uint64_t state = 1;

static float noise(void) {
    double sum = 0;
    for (int i = 0; i < 3; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(state >> 33) / 1073741824.0 - 1;
    }
    return (float)sum;
}

float *noise_new(int64_t count, double size) {
    float *x = memory_new((size_t)count, sizeof *x);
    for (int64_t i = 0; i < count; i++) x[i] = (float)(noise() * size);
    return x;
}
