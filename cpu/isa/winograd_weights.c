/* Weights as Winograd's F(4x4, 3x3) multiplies them, expanded from where they are stored, a panel at a time. At small images this is most
   of the work, so it is made to cost few instructions: rows of 16-bit weights [n][k] are transposed as 16-bit elements in 128-bit lanes,
   through a buffer in the L1 cache, and converted when they are read from there. */
#include "cpu/isa/winograd.h"

enum { LINE = 64 }; /* bytes of a row of weights taken at a time: a cache line */

/* Element (tap, k, n) is at data + tap * tap_step + k * k_step + n; lanes are n. */
typedef struct weight_view {
    const void *data;
    int64_t tap_step, k_step;
} weight_view;

/* ---- from [n][k] to [k][n] ---- */

#ifdef __AVX512F__
typedef __m512i pack;
INLINE pack pack_load(const uint16_t *const row[TILE_COLUMNS], int i, int64_t at) {
    __m512i r = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(row[i] + at)));
    r = _mm512_inserti32x4(r, _mm_loadu_si128((const __m128i *)(row[i + 8] + at)), 1);
    r = _mm512_inserti32x4(r, _mm_loadu_si128((const __m128i *)(row[i + 16] + at)), 2);
    return _mm512_inserti32x4(r, _mm_loadu_si128((const __m128i *)(row[i + 24] + at)), 3);
}
#define PACK(name) _mm512_##name
INLINE void pack_store(uint16_t *p, pack v) { _mm512_storeu_si512(p, v); }
#else
typedef __m256i pack;
INLINE pack pack_load(const uint16_t *const row[TILE_COLUMNS], int i, int64_t at) {
    __m256i r = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(row[i] + at)));
    return _mm256_inserti128_si256(r, _mm_loadu_si128((const __m128i *)(row[i + 8] + at)), 1);
}
#define PACK(name) _mm256_##name
INLINE void pack_store(uint16_t *p, pack v) { _mm256_storeu_si256((__m256i *)p, v); }
#endif

/* 8 elements of TILE_COLUMNS rows, transposed: out [8, TILE_COLUMNS]. Lane q of register i holds row 8 q + i. */
INLINE void pack_transpose(const uint16_t *const row[TILE_COLUMNS], int64_t at, uint16_t *out) {
    pack r[8], s[8];
    UNROLL for (int i = 0; i < 8; i++) r[i] = pack_load(row, i, at);
    UNROLL for (int i = 0; i < 8; i += 2) {
        s[i] = PACK(unpacklo_epi16)(r[i], r[i + 1]);
        s[i + 1] = PACK(unpackhi_epi16)(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        UNROLL for (int half = 0; half < 2; half++) {
            r[i + 2 * half] = PACK(unpacklo_epi32)(s[i + half], s[i + 2 + half]);
            r[i + 2 * half + 1] = PACK(unpackhi_epi32)(s[i + half], s[i + 2 + half]);
        }
    }
    UNROLL for (int i = 0; i < 4; i++) {
        pack_store(out + 2 * i * TILE_COLUMNS, PACK(unpacklo_epi64)(r[i], r[i + 4]));
        pack_store(out + (2 * i + 1) * TILE_COLUMNS, PACK(unpackhi_epi64)(r[i], r[i + 4]));
    }
}

/* Rows of the view with n in front: element (tap, n, k) at w + (tap * n_all + n) * k_all + k. Columns behind the last repeat it. */
INLINE void stage_rows(const cpu_gemm *g, size_t size, int64_t tap, int64_t k0, int64_t n0, int columns, const char *row[TILE_COLUMNS]) {
    for (int i = 0; i < TILE_COLUMNS; i++) {
        int64_t n = n0 + (i < columns ? i : columns - 1);
        row[i] = (const char *)g->b + (size_t)((tap * g->n + n) * g->k + k0) * size;
    }
}

static void stage_half(const cpu_gemm *g, int64_t k0, int64_t depth, int64_t n0, int columns, uint16_t *stage) {
    for (int64_t tap = 0; tap < 9; tap++) {
        const char *bytes[TILE_COLUMNS];
        const uint16_t *row[TILE_COLUMNS];
        stage_rows(g, sizeof **row, g->gather->backward ? 8 - tap : tap, k0, n0, columns, bytes);
        for (int i = 0; i < TILE_COLUMNS; i++) row[i] = (const uint16_t *)(const void *)bytes[i];
        for (int64_t at = 0; at < depth; at += 8) pack_transpose(row, at, stage + (tap * (LINE / 2) + at) * TILE_COLUMNS);
    }
}

static void stage_float(const cpu_gemm *g, int64_t k0, int64_t depth, int64_t n0, int columns, float *stage) {
    for (int64_t tap = 0; tap < 9; tap++) {
        const char *row[TILE_COLUMNS];
        stage_rows(g, sizeof *stage, g->gather->backward ? 8 - tap : tap, k0, n0, columns, row);
        for (int64_t at = 0; at < depth; at += LANES)
            for (int j = 0; j < TILE_COLUMNS; j += LANES) {
                vec r[LANES];
                UNROLL for (int i = 0; i < LANES; i++) r[i] = vec_load((const float *)(const void *)row[j + i] + at);
                vec_transpose(r);
                UNROLL for (int i = 0; i < LANES; i++) vec_store(stage + (tap * (LINE / 4) + at + i) * TILE_COLUMNS + j, r[i]);
            }
    }
}

/* ---- the transform ---- */

/* Row y of the result from row y of G w. */
INLINE void row_store(vec a, vec b, vec c, float *u) {
    vec s = a + POINT_A2 * c, t = a + POINT_B2 * c;
    vec_store(u, a);
    vec_store(u + SLAB_PLANE, s + POINT_A * b);
    vec_store(u + 2 * SLAB_PLANE, s - POINT_A * b);
    vec_store(u + 3 * SLAB_PLANE, t + POINT_B * b);
    vec_store(u + 4 * SLAB_PLANE, t - POINT_B * b);
    vec_store(u + 5 * SLAB_PLANE, c);
}

INLINE void pair_store(const vec w[9], float point, float *u) {
    vec up[3], down[3];
    UNROLL for (int x = 0; x < 3; x++) {
        vec even = w[x] + point * point * w[6 + x];
        up[x] = even + point * w[3 + x];
        down[x] = even - point * w[3 + x];
    }
    row_store(up[0], up[1], up[2], u);
    row_store(down[0], down[1], down[2], u + TILE_IN * SLAB_PLANE);
}

INLINE void panel_transform(weight_view v, const dtype type, int64_t depth, const int vectors, float *u) {
    for (int64_t k = 0; k < depth; k++) UNROLL for (int j = 0; j < vectors; j++) {
            float *to = u + k / SLAB * SLAB_SIZE + k % SLAB * TILE_COLUMNS + j * LANES;
            vec w[9];
            UNROLL for (int tap = 0; tap < 9; tap++) w[tap] = vec_load_as(v.data, type, tap * v.tap_step + k * v.k_step + j * LANES);
            row_store(w[0], w[1], w[2], to);
            pair_store(w, POINT_A, to + TILE_IN * SLAB_PLANE);
            pair_store(w, POINT_B, to + 3 * TILE_IN * SLAB_PLANE);
            row_store(w[6], w[7], w[8], to + 5 * TILE_IN * SLAB_PLANE);
        }
}

static void panel_store(weight_view v, dtype type, int64_t depth, int vectors, float *u) {
#define ONE(t) \
    if (vectors == TILE_VECTORS) \
        panel_transform(v, t, depth, TILE_VECTORS, u); \
    else \
        panel_transform(v, t, depth, 1, u)
    if (type == DTYPE_F16) {
        ONE(DTYPE_F16);
    } else if (type == DTYPE_BF16) {
        ONE(DTYPE_BF16);
    } else {
        ONE(DTYPE_F32);
    }
#undef ONE
}

void isa_winograd_weights(const cpu_gemm *g, int64_t k0, int64_t depth, int64_t n0, int vectors, float *u, void *stage) {
    size_t size = dtype_size(g->b_type);
    if (g->kn) {
        int64_t tap_step = g->k * g->n, first = g->gather->backward ? 8 * tap_step : 0;
        const char *at = (const char *)g->b + (size_t)(first + k0 * g->n + n0) * size;
        panel_store((weight_view){at, g->gather->backward ? -tap_step : tap_step, g->n}, g->b_type, depth, vectors, u);
        return;
    }
    int64_t line = LINE / (int64_t)size;
    for (int64_t k = 0; k < depth; k += line, u += line / SLAB * SLAB_SIZE) {
        int64_t part = depth - k < line ? depth - k : line;
        if (g->b_type == DTYPE_F32)
            stage_float(g, k0 + k, part, n0, vectors * LANES, stage);
        else
            stage_half(g, k0 + k, part, n0, vectors * LANES, stage);
        panel_store((weight_view){stage, line * TILE_COLUMNS, TILE_COLUMNS}, g->b_type, part, vectors, u);
    }
}

/* Rows [n][k] are asked for in pairs of cache lines, which memory delivers together. */
void isa_winograd_prefetch(const cpu_gemm *g, int64_t k0, int64_t n0, int64_t columns, int plane) {
    enum { PAIR = 2 * LINE / sizeof(uint16_t), STEPS = PAIR / DEPTH };
    int64_t next = g->kn ? k0 + DEPTH : k0 / PAIR * PAIR + PAIR, left = g->k - next, parts = PLANES, part = plane;
    if (left <= 0) return;
    int64_t rows = left < DEPTH ? left : DEPTH, length = columns, step = g->n, first = next * g->n + n0;
    if (!g->kn) {
        rows = columns, length = left < PAIR ? left : PAIR, step = g->k, first = n0 * g->k + next;
        parts *= STEPS, part += k0 % PAIR / DEPTH * PLANES;
    }
    int64_t size = (int64_t)dtype_size(g->b_type);
    for (int64_t i = 9 * rows * part / parts; i < 9 * rows * (part + 1) / parts; i++) {
        const char *row = (const char *)g->b + (i / rows * g->k * g->n + first + i % rows * step) * size;
        for (int64_t at = 0; at < length * size; at += LINE) __builtin_prefetch(row + at, 0, 2);
    }
}
