/* Winograd's convolutions of every instruction set this processor runs, against a plain convolution in double precision. */
#include "base/memory.h"
#include "cpu/cpu.h"
#include "tests/support/noise.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct sample {
    int64_t images, height, width, k, n;
    dtype type;
    bool backward, bias, shift, residual;
    float scale;
} sample;

/* The buffers have exactly their sizes, so that the sanitizer sees every access outside. */
typedef struct operands {
    float *a, *b, *bias, *shift, *residual; /* b: the values that `stored` has */
    void *stored;
    double *expected;
} operands;

/* A pixel of the result, all channels: sums over taps and channels of the source pixels in reach. */
static void pixel_expect(const sample *s, const operands *o, int64_t image, int64_t y, int64_t x, double *out) {
    for (int64_t n = 0; n < s->n; n++) out[n] = 0;
    for (int64_t tap = 0; tap < 9; tap++) {
        int64_t dy = tap / 3 - 1, dx = tap % 3 - 1, sy = s->backward ? y - dy : y + dy, sx = s->backward ? x - dx : x + dx;
        if (sy < 0 || sy >= s->height || sx < 0 || sx >= s->width) continue;
        const float *a = o->a + ((image * s->height + sy) * s->width + sx) * s->k, *b = o->b + tap * s->k * s->n;
        for (int64_t n = 0; n < s->n; n++)
            for (int64_t k = 0; k < s->k; k++) out[n] += (double)a[k] * (double)(s->backward ? b[k * s->n + n] : b[n * s->k + k]);
    }
}

static operands operands_new(const sample *s) {
    int64_t pixels = s->images * s->height * s->width, weights = 9 * s->k * s->n;
    operands o = {.a = noise_new(pixels * s->k, 1),
                  .b = noise_new(weights, 1 / sqrt(9.0 * (double)s->k)),
                  .bias = s->bias ? noise_new(s->n, 1) : NULL,
                  .shift = s->shift ? noise_new(s->images * s->n, 1) : NULL,
                  .residual = s->residual ? noise_new(pixels * s->n, 1) : NULL,
                  .stored = memory_new((size_t)weights, dtype_size(s->type)),
                  .expected = memory_new((size_t)(pixels * s->n), sizeof(double))};
    dtype_from_f32(o.stored, s->type, o.b, (size_t)weights);
    dtype_to_f32(o.b, o.stored, s->type, (size_t)weights);
    for (int64_t p = 0; p < pixels; p++) {
        double *out = o.expected + p * s->n;
        pixel_expect(s, &o, p / (s->height * s->width), p / s->width % s->height, p % s->width, out);
        for (int64_t n = 0; n < s->n; n++) {
            out[n] *= (double)s->scale;
            if (o.bias) out[n] += (double)o.bias[n];
            if (o.shift) out[n] += (double)o.shift[p / (s->height * s->width) * s->n + n];
            if (o.residual) out[n] += (double)o.residual[p * s->n + n];
        }
    }
    return o;
}

static void operands_free(operands *o) {
    free(o->a), free(o->b), free(o->bias), free(o->shift), free(o->residual), free(o->stored), free(o->expected);
}

/* c [m, n] by the kernel, whether it is the fastest or not; in_place: the residual is c itself. */
static void kernel_run(const cpu_kernels *kernels, const sample *s, const operands *o, int threads, bool in_place, float *c) {
    cpu_gather gather = {.height = s->height,
                         .width = s->width,
                         .source_height = s->height,
                         .source_width = s->width,
                         .kernel = 3,
                         .stride = 1,
                         .pad = 1,
                         .backward = s->backward};
    cpu_gemm g = {.m = s->images * s->height * s->width,
                  .n = s->n,
                  .k = s->k,
                  .taps = 9,
                  .gather = &gather,
                  .a = o->a,
                  .lda = s->k,
                  .b = o->stored,
                  .b_type = s->type,
                  .kn = s->backward,
                  .scale = s->scale,
                  .bias = o->bias,
                  .shift = o->shift,
                  .residual = in_place ? c : o->residual,
                  .c = c,
                  .rows_per_image = s->height * s->width};
    if (in_place) memcpy(c, o->residual, (size_t)(g.m * g.n) * sizeof *c);
    void *scratch = memory_try_aligned(kernels->winograd_scratch(&g, threads));
    assert_non_null(scratch);
    kernels->winograd(&g, threads, scratch);
    free(scratch);
}

/* Relative L2 difference. */
static double difference(const float *c, const double *expected, int64_t count) {
    double wrong = 0, all = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)c[i] - expected[i];
        wrong += d * d, all += expected[i] * expected[i];
    }
    return sqrt(wrong / all);
}

static void sample_check(const sample *s) {
    operands o = operands_new(s);
    int64_t count = s->images * s->height * s->width * s->n;
    float *c = memory_new((size_t)count, sizeof *c), *other = memory_new((size_t)count, sizeof *c);
    for (int i = 0; cpu_kernels_at(i); i++) {
        const cpu_kernels *kernels = cpu_kernels_at(i);
        if (i > 0 && kernels->winograd == cpu_kernels_at(i - 1)->winograd) continue; /* sets share it */
        kernel_run(kernels, s, &o, 1, false, c);
        double relative = difference(c, o.expected, count);
        print_message("%-10s %d x %dx%d, %4d -> %4d %-4s %s: %.1e\n", kernels->name, (int)s->images, (int)s->height, (int)s->width,
                      (int)s->k, (int)s->n, dtype_name(s->type), s->backward ? "backward" : "forward ", relative);
        assert_true(relative <= 1e-5);
        kernel_run(kernels, s, &o, 3, o.residual != NULL, other);
        assert_memory_equal(c, other, (size_t)count * sizeof *c);
    }
    free(c), free(other);
    operands_free(&o);
}

static void sizes_and_types(void **unused) {
    (void)unused;
    const int64_t sizes[][3] = {{1, 5, 7}, {1, 8, 8}, {2, 9, 16}, {3, 4, 6}, {1, 12, 13}};
    const dtype types[] = {DTYPE_F16, DTYPE_BF16, DTYPE_F32};
    for (int i = 0; i < 5; i++)
        for (int t = 0; t < 3; t++)
            for (int backward = 0; backward < 2; backward++)
                sample_check(&(sample){.images = sizes[i][0],
                                       .height = sizes[i][1],
                                       .width = sizes[i][2],
                                       .k = 64,
                                       .n = 32,
                                       .type = types[t],
                                       .backward = backward,
                                       .bias = t != 1,
                                       .shift = t != 2,
                                       .residual = t != 0,
                                       .scale = t == 1 ? 0.5f : 1.0f});
}

/* Not multiples of the blocks in which channels are taken; more tiles than a chunk; more than a band holds. */
static void blocks(void **unused) {
    (void)unused;
    const sample samples[] = {
        {2, 9, 11, 80, 48, DTYPE_F16, false, true, true, true, 1},   {2, 9, 11, 80, 48, DTYPE_F16, true, true, true, true, 1},
        {1, 8, 9, 208, 16, DTYPE_F32, false, true, true, true, 1},   {1, 8, 9, 208, 16, DTYPE_BF16, true, false, false, true, 1},
        {1, 37, 38, 64, 32, DTYPE_F16, false, true, true, true, 1},  {1, 38, 37, 64, 32, DTYPE_F16, true, false, false, true, 1},
        {90, 1, 2, 2560, 32, DTYPE_F16, false, true, true, true, 1}, {90, 2, 1, 2560, 32, DTYPE_F16, true, true, true, true, 1},
    };
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) sample_check(&samples[i]);
}

/* As deep as Stable Diffusion 1.5 is. */
static void deep(void **unused) {
    (void)unused;
    sample_check(&(sample){2, 16, 16, 1280, 32, DTYPE_F16, false, true, true, true, 1});
    sample_check(&(sample){2, 16, 16, 1280, 32, DTYPE_F16, true, false, false, false, 1});
}

/* A stride, another kernel, odd numbers of channels, a handful of pixels: not its business. */
static void refusals(void **unused) {
    (void)unused;
    for (int i = 0; cpu_kernels_at(i); i++) {
        cpu_gather gather = {
            .height = 16, .width = 16, .source_height = 16, .source_width = 16, .kernel = 3, .stride = 1, .pad = 1, .backward = false};
        cpu_gemm g = {.m = 256, .n = 320, .k = 320, .taps = 9, .gather = &gather, .lda = 320, .b_type = DTYPE_F16, .scale = 1};
        const cpu_kernels *kernels = cpu_kernels_at(i);
        assert_true(kernels->winograd_serves(&g));
        gather.stride = 2, gather.source_height = gather.source_width = 32;
        assert_false(kernels->winograd_serves(&g));
        gather.stride = 1, gather.source_height = gather.source_width = 16, gather.kernel = 1, gather.pad = 0, g.taps = 1;
        assert_false(kernels->winograd_serves(&g));
        gather.kernel = 3, gather.pad = 1, g.taps = 9, g.k = g.lda = 4;
        assert_false(kernels->winograd_serves(&g));
        g.k = g.lda = 320, g.n = 3;
        assert_false(kernels->winograd_serves(&g));
        g.n = 320, gather.height = gather.width = gather.source_height = gather.source_width = 4, g.m = 16;
        assert_false(kernels->winograd_serves(&g));
        g.gather = NULL;
        assert_false(kernels->winograd_serves(&g));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(sizes_and_types), cmocka_unit_test(blocks), cmocka_unit_test(deep),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
