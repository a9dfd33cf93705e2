/* Which rows of its source a convolution's result sees (cpu_gather). */
#ifndef VULORA_CPU_ISA_ROWS_H
#define VULORA_CPU_ISA_ROWS_H

#include "cpu/isa/vec.h"

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t unit) { return quotient_up(a, unit) * unit; }

/* A row of the result. */
typedef struct pixel {
    int64_t row, source; /* its number; that of the first row of its image in the source */
    int32_t y, x;
} pixel;

/* The pixels at positions first.. of the result. A tile's rows should see something through the same taps: where the gradient of a strided
   convolution is gathered, a line goes through its pixels in steps of the stride. */
static inline void pixels_list(const cpu_gather *s, int64_t first, int64_t count, pixel *pixels) {
    int64_t area = s->height * s->width, image = first / area, y = first % area / s->width, x = first % s->width;
    int64_t apart = s->backward ? s->stride : 1, start = 0;
    for (int64_t some; x >= (some = quotient_up(s->width - start, apart)); start++) x -= some;
    x = start + x * apart;
    for (int64_t i = 0; i < count; i++) {
        pixels[i] = (pixel){(image * s->height + y) * s->width + x, image * s->source_height * s->source_width, (int32_t)y, (int32_t)x};
        if ((x += apart) < s->width) continue;
        if ((x = ++start) < least(apart, s->width)) continue;
        x = start = 0;
        if (++y == s->height) y = 0, image++;
    }
}

/* The row of the source that a pixel sees through tap (ty, tx), or -1. */
INLINE int64_t pixel_sees(const cpu_gather *s, const pixel *p, int ty, int tx) {
    int y, x;
    if (s->backward) {
        y = p->y + s->pad - ty, x = p->x + s->pad - tx;
        if (s->stride > 1) {
            if (y % s->stride || x % s->stride) return -1;
            y /= s->stride, x /= s->stride;
        }
    } else {
        y = p->y * s->stride + ty - s->pad, x = p->x * s->stride + tx - s->pad;
    }
    if (y < 0 || x < 0 || y >= s->source_height || x >= s->source_width) return -1;
    return p->source + y * s->source_width + x;
}

#endif
