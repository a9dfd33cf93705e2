#include "lycoris/rotation.h"

#include "base/memory.h"
#include "ops/ops.h"

#include <stdlib.h>
#include <string.h>

rotation rotation_new(int64_t stages, int64_t blocks, int64_t size) {
    return (rotation){stages, blocks, size, memory_new((size_t)(stages * blocks * size * size), sizeof(double))};
}

void rotation_free(rotation *r) {
    free(r->values);
    r->values = NULL;
}

void rotation_transpose(rotation *r) {
    int64_t n = r->size;
    for (int64_t b = 0; b < r->stages * r->blocks; b++) {
        double *m = r->values + b * n * n;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < i; j++) {
                double swapped = m[i * n + j];
                m[i * n + j] = m[j * n + i];
                m[j * n + i] = swapped;
            }
    }
}

/* (I - q) (I + q)^-1 = 2 (I + q)^-1 - I */
void rotation_cayley(double *r, const double *q, int64_t n) {
    for (int64_t i = 0; i < n * n; i++) r[i] = q[i] + (i % (n + 1) == 0);
    cayley_invert(r, n);
    for (int64_t i = 0; i < n * n; i++) r[i] = 2 * r[i] - (i % (n + 1) == 0);
}

static void add_multiple(double *y, const double *x, double factor, int64_t count) {
    for (int64_t i = 0; i < count; i++) y[i] += factor * x[i];
}

/* power := power q, row by row. */
static void raise(double *power, const double *q, int64_t n) {
    double *row = memory_new((size_t)n, sizeof *row);
    for (int64_t i = 0; i < n; i++) {
        memset(row, 0, (size_t)n * sizeof *row);
        for (int64_t k = 0; k < n; k++) add_multiple(row, q + k * n, power[i * n + k], n);
        memcpy(power + i * n, row, (size_t)n * sizeof *row);
    }
    free(row);
}

void rotation_series(double *r, const double *q, double *power, int64_t n, int terms) {
    int64_t count = n * n;
    for (int64_t i = 0; i < count; i++) r[i] = i % (n + 1) == 0;
    if (terms > 1) add_multiple(r, q, 2, count);
    if (terms < 3) return;
    memcpy(power, q, (size_t)count * sizeof *power);
    raise(power, q, n);
    add_multiple(r, power, 2, count);
    for (int k = 3; k < terms - 1; k++) {
        raise(power, q, n);
        add_multiple(r, power, 2, count);
    }
    raise(power, q, n);
    add_multiple(r, power, 1, count);
}

/* The column that stands at `at` among a stage's blocks: [c, 2, stride] seen as [c, stride, 2]. */
static int64_t butterfly(int64_t at, int64_t stride) {
    if (!stride) return at;
    int64_t inside = at % (2 * stride);
    return at - inside + inside % 2 * stride + inside / 2;
}

void rotation_turn(const rotation *r, int64_t stage, double *row, double *work) {
    int64_t n = r->size, stride = r->stages > 1 ? n / 2 << stage : 0, columns = r->blocks * n;
    memset(work, 0, (size_t)columns * sizeof *work);
    for (int64_t g = 0; g < r->blocks; g++) {
        const double *m = r->values + (stage * r->blocks + g) * n * n;
        for (int64_t i = 0; i < n; i++) add_multiple(work + g * n, m + i * n, row[butterfly(g * n + i, stride)], n);
    }
    for (int64_t at = 0; at < columns; at++) row[butterfly(at, stride)] = work[at];
}
