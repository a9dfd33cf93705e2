#include "bench/kernels/peak.h"

#include <omp.h>
#include <string.h>
#include <time.h>

double bench_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__x86_64__)
#include <immintrin.h>

/* Each loop keeps CHAINS sums going, more than an instruction's latency times how many start per cycle, and returns something of them, so
   that the compiler cannot leave them out. */
enum { CHAINS = 12, TILES = 4, RUNS = 5 };

__attribute__((target("avx2,fma"), noinline)) static float loop_avx2(long rounds) {
    __m256 sum[CHAINS], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_set1_ps((float)i);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_fmadd_ps(sum[i], x, y);
    }
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm256_add_ps(sum[0], sum[i]);
    return _mm256_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f"), noinline)) static float loop_avx512(long rounds) {
    __m512 sum[CHAINS], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_fmadd_ps(sum[i], x, y);
    }
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    return _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f,avx512bf16"), noinline)) static float loop_avx512bf16(long rounds) {
    __m512 sum[CHAINS];
    __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f00), y = (__m512bh)_mm512_set1_epi16(0x3c00);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], x, y);
    }
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    return _mm512_cvtss_f32(sum[0]);
}

/* Tiles 0 to 3 are sums of 16 x 16, 4 and 5 operands of 16 rows of 32 bf16 values. */
__attribute__((target("amx-tile,amx-bf16"), noinline)) static float loop_amx(long rounds) {
    struct {
        unsigned char palette, start_row, reserved[14];
        unsigned short row_bytes[16];
        unsigned char rows[16];
    } shape = {.palette = 1};
    float out[256];
    for (int i = 0; i < 6; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (long r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, out, 64);
    _tile_release();
    return out[0];
}

typedef struct peak_loop {
    const char *kernels;
    float (*fp32)(long rounds), (*bf16)(long rounds);
    double fp32_flops, bf16_flops; /* of a round */
} peak_loop;

static const peak_loop loops[] = {
    {"avx2", loop_avx2, NULL, CHAINS * 8 * 2, 0},
    {"avx512", loop_avx512, NULL, CHAINS * 16 * 2, 0},
    {"avx512bf16", loop_avx512, loop_avx512bf16, CHAINS * 16 * 2, CHAINS * 32 * 2},
    {"amx", loop_avx512, loop_amx, CHAINS * 16 * 2, TILES * 16.0 * 16 * 32 * 2},
};

double peak_measure(const char *kernels, bool bf16, int threads) {
    const long rounds = 2000000;
    double best = 0;
    for (size_t l = 0; l < sizeof loops / sizeof *loops; l++) {
        float (*loop)(long) = bf16 ? loops[l].bf16 : loops[l].fp32;
        if (strcmp(loops[l].kernels, kernels) != 0 || !loop) continue;
        for (int run = 0; run < RUNS; run++) {
            volatile float kept = 0;
            double start = bench_clock();
#pragma omp parallel num_threads(threads)
            {
                float sum = loop(rounds);
                if (omp_get_thread_num() == 0) kept = sum;
            }
            (void)kept;
            double rate = (bf16 ? loops[l].bf16_flops : loops[l].fp32_flops) * (double)rounds * threads / (bench_clock() - start);
            if (rate > best) best = rate;
        }
    }
    return best;
}
#else
double peak_measure(const char *kernels, bool bf16, int threads) {
    (void)kernels, (void)bf16, (void)threads;
    return 0;
}
#endif
