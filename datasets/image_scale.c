/* Separable resampling. Weights are made per output pixel: area coverage as in OpenCV's INTER_AREA, or Lanczos with three lobes,
   stretched by the scale when shrinking, as in Pillow. */
#include "base/memory.h"
#include "datasets/image.h"

#include <math.h>
#include <stdlib.h>

#define LOBES 3.0
#define PI 3.14159265358979323846

/* For output pixel i: taps[i] weights at weights[i * most], for input pixels first[i], first[i] + 1, ... */
typedef struct filter {
    int *first, *taps, most;
    float *weights;
} filter;

static double lanczos(double x) {
    if (fabs(x) >= LOBES) return 0;
    if (fabs(x) < 1e-9) return 1;
    return LOBES * sin(PI * x) * sin(PI * x / LOBES) / (PI * PI * x * x);
}

static void filter_free(filter *f) {
    free(f->first);
    free(f->taps);
    free(f->weights);
    *f = (filter){0};
}

/* `in` pixels to `out` pixels, nothing outside 0..in-1 being used: the weights left are scaled to a sum of one. */
static filter filter_make(int in, int out, bool area) {
    double scale = (double)in / out, stretch = scale > 1 ? scale : 1, support = area ? scale / 2 : LOBES * stretch;
    filter f = {.most = (int)ceil(2 * support) + 2};
    f.first = memory_new((size_t)out, sizeof *f.first);
    f.taps = memory_new((size_t)out, sizeof *f.taps);
    f.weights = memory_new((size_t)out * (size_t)f.most, sizeof *f.weights);
    for (int i = 0; i < out; i++) {
        double center = (i + 0.5) * scale, low = center - support, high = center + support, sum = 0;
        int first = low < 0 ? 0 : (int)low, last = high > in ? in : (int)ceil(high);
        if (last - first > f.most) last = first + f.most;
        float *weights = f.weights + (size_t)i * (size_t)f.most;
        for (int j = first; j < last; j++) {
            double covered = fmin(high, j + 1.0) - fmax(low, j);
            double weight = area ? fmax(covered, 0) : lanczos((j + 0.5 - center) / stretch);
            weights[j - first] = (float)weight;
            sum += weight;
        }
        for (int j = first; j < last; j++) weights[j - first] = (float)(weights[j - first] / sum);
        f.first[i] = first;
        f.taps[i] = last - first;
    }
    return f;
}

/* One row of the picture, [*, 3] bytes, to [out_width, 3]. */
static void scale_row(const uint8_t *row, const filter *f, float *out, int out_width) {
    for (int x = 0; x < out_width; x++) {
        const uint8_t *in = row + (size_t)f->first[x] * 3;
        const float *weights = f->weights + (size_t)x * (size_t)f->most;
        float r = 0, g = 0, b = 0;
        for (int k = 0; k < f->taps[x]; k++, in += 3) {
            r += weights[k] * in[0];
            g += weights[k] * in[1];
            b += weights[k] * in[2];
        }
        out[x * 3] = r;
        out[x * 3 + 1] = g;
        out[x * 3 + 2] = b;
    }
}

/* rows: [area height, width, 3] after the first pass; 0..255 becomes -1..1, Lanczos' overshoots are cut. */
static void scale_columns(const float *rows, const filter *f, bool flip, float *out, int width, int height) {
    size_t stride = (size_t)width * 3;
    for (int y = 0; y < height; y++) {
        float *to = out + (size_t)y * stride;
        for (size_t i = 0; i < stride; i++) to[i] = 0;
        for (int k = 0; k < f->taps[y]; k++) {
            const float *from = rows + (size_t)(f->first[y] + k) * stride;
            float weight = f->weights[(size_t)y * (size_t)f->most + (size_t)k];
            for (size_t i = 0; i < stride; i++) to[i] += weight * from[i];
        }
        for (size_t i = 0; i < stride; i++) {
            float value = to[i] < 0 ? 0 : to[i] > 255 ? 255 : to[i];
            to[i] = value / 127.5f - 1;
        }
        if (!flip) continue;
        for (int left = 0, right = width - 1; left < right; left++, right--)
            for (int c = 0; c < 3; c++) {
                float kept = to[left * 3 + c];
                to[left * 3 + c] = to[right * 3 + c];
                to[right * 3 + c] = kept;
            }
    }
}

bool image_scale(const image_rgb *picture, image_area area, bool flip, float *out, int out_width, int out_height, error *err) {
    float *rows = memory_try_aligned((size_t)area.height * (size_t)out_width * 3 * sizeof *rows);
    if (!rows) return error_set(err, "not enough memory to scale %dx%d pixels", area.width, area.height);
    bool shrinks = area.width >= out_width && area.height >= out_height;
    filter across = filter_make(area.width, out_width, shrinks), down = filter_make(area.height, out_height, shrinks);
    for (int y = 0; y < area.height; y++) {
        const uint8_t *row = picture->pixels + ((size_t)(area.y + y) * (size_t)picture->width + (size_t)area.x) * 3;
        scale_row(row, &across, rows + (size_t)y * (size_t)out_width * 3, out_width);
    }
    scale_columns(rows, &down, flip, out, out_width, out_height);
    filter_free(&across);
    filter_free(&down);
    free(rows);
    return true;
}
