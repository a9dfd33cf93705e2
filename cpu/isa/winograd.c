/* 3x3 convolution, stride 1, pad 1, and its backward-data by Winograd's F(4x4, 3x3) in fp32, on images without a border. Tiles of all
   images are numbered through and taken in bands, whose transformed pixels are scratch memory. A task is a band's tiles times a few panels
   of TILE_COLUMNS output channels: it transforms the panels' weights, DEPTH input channels at a time, multiplies them with the pixels in
   each of the 36 planes, and transforms the sums back, adding everything else on the way.

   With tiles enough, every thread has bands of its own; else threads share a band and split its output channels. Every element is summed
   in the same order either way. */
#include "cpu/isa/winograd.h"

#include <omp.h>

enum {
    BAND = 64,          /* tiles, at most, that share transformed weights: their sums stay in the L2 cache */
    WEIGHTS_COST = 10,  /* transforming a panel's weights takes as long as the products of so many tiles */
    V_BYTES = 24 << 20, /* transformed pixels, of all threads */
    FEW = 16,           /* tiles; up to there, reading weights is much of the work */
    PANELS = 4          /* at most, in a task */
};

/* Sizes of one call. */
typedef struct layout {
    int64_t rows, columns, tiles; /* of tiles in an image; tiles of all images */
    int64_t band;                 /* tiles */
    bool apart;                   /* every thread has its own bands */
    int64_t blocks, panels;       /* of DEPTH input channels in all; of TILE_COLUMNS output channels in a task */
    int64_t v_plane, m_plane;     /* floats from plane to plane of transformed pixels [DEPTH] and of sums [TILE_COLUMNS] */
    int64_t v, own;               /* floats of transformed pixels of a band; of the rest of a thread's scratch */
} layout;

static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
static int64_t parts_of(int64_t value, int64_t part) { return (value + part - 1) / part; }

/* How many panels share a pass over the pixels. Few tiles: weights [k][n] are read in long pieces, weights [n][k] need none of that. */
static int64_t panels_of(const cpu_gemm *g, int64_t band, int threads) {
    int64_t panels = band > FEW ? 2 : g->kn ? PANELS : 1, all = parts_of(g->n, TILE_COLUMNS);
    while (panels > 1 && all < 3 * panels * threads) panels /= 2;
    return panels;
}

/* Bands as equal as they can be, of at most `most` tiles, their number a multiple of `threads`. */
static int64_t band_of(int64_t tiles, int64_t most, int threads) {
    int64_t rounds = parts_of(tiles, most * threads), band = parts_of(tiles, rounds * threads);
    return at_most(most, parts_of(band, TILE_ROWS) * TILE_ROWS);
}

static layout layout_of(const cpu_gemm *g, int threads) {
    layout l = {.rows = parts_of(g->gather->height, TILE_OUT), .columns = parts_of(g->gather->width, TILE_OUT)};
    l.tiles = g->m / (g->gather->height * g->gather->width) * l.rows * l.columns;
    l.blocks = parts_of(g->k, DEPTH);
    int64_t fit = V_BYTES / (int64_t)sizeof(float) / (l.blocks * PLANES * DEPTH), all = parts_of(g->n, TILE_COLUMNS);
    l.band = at_most(l.tiles, band_of(l.tiles, at_most(BAND, fit > TILE_ROWS ? fit : TILE_ROWS), 1));
    l.panels = panels_of(g, l.band, threads);
    if (threads > 1 && fit / threads >= TILE_ROWS) {
        int64_t own = band_of(l.tiles, at_most(BAND, fit / threads), threads);
        int64_t shared_cost = parts_of(l.tiles, l.band) * parts_of(all, l.panels * threads) * l.panels * (l.band + WEIGHTS_COST);
        l.apart = parts_of(l.tiles, own * threads) * all * (own + WEIGHTS_COST) <= shared_cost;
        if (l.apart) l.band = own, l.panels = panels_of(g, own, 1);
    }
    l.v_plane = l.band * DEPTH + PLANE_PAD;
    l.m_plane = l.panels * l.band * TILE_COLUMNS + PLANE_PAD;
    l.v = l.blocks * PLANES * l.v_plane;
    l.own = l.panels * PANEL_SIZE + WEIGHT_STAGE / (int64_t)sizeof(float) + PLANES * l.m_plane;
    return l;
}

bool isa_winograd_serves(const cpu_gemm *g) {
    const cpu_gather *s = g->gather;
    if (!s || s->kernel != 3 || s->stride != 1 || s->pad != 1 || s->height != s->source_height || s->width != s->source_width) return false;
    if (g->taps != 9 || g->k % 16 != 0 || g->n % LANES != 0 || g->n < TILE_COLUMNS) return false;
    if (g->b_type != DTYPE_F32 && g->b_type != DTYPE_F16 && g->b_type != DTYPE_BF16) return false;
    /* Measured: this takes as long as the direct product of 5 pixels for a tile, and of 32 for the weights. */
    return g->m >= 32 + 5 * layout_of(g, 1).tiles;
}

/* Multiply-adds (of the convolution itself) below which waking threads costs more than they save. */
static const double SMALL = 1 << 24;

static int threads_of(const cpu_gemm *g, int threads) { return (double)g->m * (double)g->n * (double)g->k * g->taps < SMALL ? 1 : threads; }

size_t isa_winograd_scratch(const cpu_gemm *g, int threads) {
    threads = threads_of(g, threads);
    layout l = layout_of(g, threads);
    return (size_t)(g->k + (l.apart ? threads : 1) * l.v + threads * l.own) * sizeof(float);
}

/* ---- B^T d B ---- */

/* One dimension: six values of d `step` apart. The factors are those of Lagrange's polynomials at the points. */
INLINE void source_transform(const vec *d, int step, vec out[TILE_IN]) {
    const float a = 1 / (2 * POINT_A2 * (POINT_A2 - POINT_B2)), b = 1 / (2 * POINT_B2 * (POINT_B2 - POINT_A2));
    const float product = POINT_A2 * POINT_B2, sum = POINT_A2 + POINT_B2;
    vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    vec even = a * d4 - a * POINT_B2 * d2, odd = a * POINT_A * d3 - a * POINT_A * POINT_B2 * d1;
    out[1] = even + odd;
    out[2] = even - odd;
    even = b * d4 - b * POINT_A2 * d2, odd = b * POINT_B * d3 - b * POINT_B * POINT_A2 * d1;
    out[3] = even + odd;
    out[4] = even - odd;
    out[0] = d0 - sum / product * d2 + 1 / product * d4;
    out[5] = product * d1 - sum * d3 + d5;
}

/* Where the 6x6 pixels under a tile begin; outside the image, at zeros. */
INLINE void source_find(const cpu_gemm *g, const layout *l, int64_t tile, const float *zeros, const float *pixel[PLANES]) {
    const cpu_gather *s = g->gather;
    int64_t image = tile / (l->rows * l->columns), top = tile / l->columns % l->rows * TILE_OUT - 1,
            left = tile % l->columns * TILE_OUT - 1;
    for (int64_t i = 0; i < PLANES; i++) {
        int64_t y = top + i / TILE_IN, x = left + i % TILE_IN;
        bool inside = y >= 0 && y < s->height && x >= 0 && x < s->width;
        pixel[i] = inside ? (const float *)g->a + ((image * s->height + y) * s->width + x) * g->lda : zeros;
    }
}

/* Channels [k, k + depth) of a tile; v: the first plane's row of this tile and block. */
static void source_store(const float *const pixel[PLANES], int64_t k, int64_t depth, float *v, int64_t v_plane) {
    for (int64_t at = 0; at < depth; at += LANES) {
        vec d[PLANES], out[TILE_IN];
        UNROLL for (int x = 0; x < TILE_IN; x++) {
            vec in[TILE_IN];
            UNROLL for (int y = 0; y < TILE_IN; y++) in[y] = vec_load(pixel[y * TILE_IN + x] + k + at);
            source_transform(in, 1, out);
            UNROLL for (int y = 0; y < TILE_IN; y++) d[y * TILE_IN + x] = out[y];
        }
        UNROLL for (int y = 0; y < TILE_IN; y++) {
            source_transform(d + y * TILE_IN, 1, out);
            UNROLL for (int x = 0; x < TILE_IN; x++) vec_store(v + (y * TILE_IN + x) * v_plane + at, out[x]);
        }
    }
}

/* ---- the products ---- */

/* m [rows, TILE_COLUMNS] (+)= v [rows, depth] u [depth, vectors * LANES], the rows of v DEPTH apart, u in slabs. */
INLINE void tile_multiply(const int rows, const int vectors, int64_t depth, const float *v, const float *u, float *m, bool add) {
    vec sum[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = add ? vec_load(m + i * TILE_COLUMNS + j * LANES) : vec_splat(0);
    }
    for (int64_t k = 0; k < depth; k += SLAB, v += SLAB, u += SLAB_SIZE) UNROLL for (int s = 0; s < SLAB; s++) {
            vec w[TILE_VECTORS];
            UNROLL for (int j = 0; j < vectors; j++) w[j] = vec_load(u + s * TILE_COLUMNS + j * LANES);
            UNROLL for (int i = 0; i < rows; i++) {
                vec x = vec_splat(v[i * DEPTH + s]);
                UNROLL for (int j = 0; j < vectors; j++) sum[i][j] += x * w[j];
            }
        }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) vec_store(m + i * TILE_COLUMNS + j * LANES, sum[i][j]);
    }
}

static void rows_multiply(int rows, int vectors, int64_t depth, const float *v, const float *u, float *m, bool add) {
#define CASE(r) \
    case r: \
        if (vectors == TILE_VECTORS) \
            tile_multiply(r, TILE_VECTORS, depth, v, u, m, add); \
        else \
            tile_multiply(r, 1, depth, v, u, m, add); \
        return;
    switch (rows) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
#ifdef __AVX512F__
        CASE(7)
        CASE(8)
#endif
    default: return;
    }
#undef CASE
}

/* ---- A^T m A and everything else ---- */

/* One dimension: six values of m `step` apart. */
INLINE void result_transform(const vec *m, vec out[TILE_OUT]) {
    vec even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    out[0] = m[0] + even_a + even_b;
    out[1] = POINT_A * odd_a + POINT_B * odd_b;
    out[2] = POINT_A2 * even_a + POINT_B2 * even_b;
    out[3] = POINT_A * POINT_A2 * odd_a + POINT_B * POINT_B2 * odd_b + m[5];
}

/* Channels [n, n + LANES) of the pixels of a tile; m: their sums in the first plane. */
static void result_store(const cpu_gemm *g, const layout *l, int64_t tile, int64_t n, const float *m) {
    const cpu_gather *s = g->gather;
    int64_t image = tile / (l->rows * l->columns), top = tile / l->columns % l->rows * TILE_OUT, left = tile % l->columns * TILE_OUT;
    int64_t height = at_most(s->height - top, TILE_OUT), width = at_most(s->width - left, TILE_OUT), ldc = g->n, row = s->width * ldc;
    int64_t at = ((image * s->height + top) * s->width + left) * ldc + n;
    const float *residual = g->residual ? g->residual + at : NULL;
    float *c = (float *)g->c + at;
    vec d[TILE_OUT][TILE_IN], out[TILE_OUT], offset = vec_splat(0), scale = vec_splat(g->scale);
    UNROLL for (int x = 0; x < TILE_IN; x++) {
        vec in[TILE_IN];
        UNROLL for (int y = 0; y < TILE_IN; y++) in[y] = vec_load(m + (y * TILE_IN + x) * l->m_plane);
        result_transform(in, out);
        UNROLL for (int y = 0; y < TILE_OUT; y++) d[y][x] = out[y];
    }
    if (g->bias) offset += vec_load(g->bias + n);
    if (g->shift) offset += vec_load(g->shift + image * g->n + n);
    UNROLL for (int y = 0; y < TILE_OUT; y++) {
        if (y >= height) break;
        result_transform(d[y], out);
        UNROLL for (int x = 0; x < TILE_OUT; x++) {
            if (x >= width) break;
            vec value = scale * out[x] + offset;
            if (residual) value += vec_load(residual + y * row + x * ldc);
            vec_store(c + y * row + x * ldc, value);
        }
    }
}

/* ---- a call ---- */

/* Transformed pixels of `count` tiles from number `first` on, of one block of channels; v: the block's first row. */
static void pixels_transform(const cpu_gemm *g, const layout *l, int64_t first, int64_t count, int64_t block, const float *zeros,
                             float *v) {
    for (int64_t t = 0; t < count; t++) {
        const float *pixel[PLANES];
        source_find(g, l, first + t, zeros, pixel);
        source_store(pixel, block * DEPTH, at_most(g->k - block * DEPTH, DEPTH), v + t * DEPTH, l->v_plane);
    }
}

/* Asks for the pixels that rows_multiply needs after those of tile t of a plane. */
INLINE void pixels_prefetch(const layout *l, const float *v, int64_t t, int64_t count) {
    const float *next = t + TILE_ROWS < count ? v + (t + TILE_ROWS) * DEPTH : v + l->v_plane;
    UNROLL for (int i = 0; i < TILE_ROWS * DEPTH; i += 16) __builtin_prefetch(next + i, 0, 3);
}

/* `count` tiles from number `first` on, v their transformed pixels; output channels from n0 on. own: this thread's scratch. */
static void task_run(const cpu_gemm *g, const layout *l, int64_t first, int64_t count, int64_t n0, const float *v, float *own) {
    float *stage = own, *u = stage + WEIGHT_STAGE / sizeof(float), *m = u + l->panels * PANEL_SIZE;
    int64_t columns = at_most(g->n - n0, l->panels * TILE_COLUMNS), panels = parts_of(columns, TILE_COLUMNS);
    int vectors[PANELS];
    for (int64_t i = 0; i < panels; i++) vectors[i] = (int)at_most(columns / LANES - i * TILE_VECTORS, TILE_VECTORS);
    for (int64_t block = 0; block < l->blocks; block++) {
        int64_t k = block * DEPTH, depth = at_most(g->k - k, DEPTH);
        for (int64_t i = 0; i < panels; i++)
            isa_winograd_weights(g, k, depth, n0 + i * TILE_COLUMNS, vectors[i], u + i * PANEL_SIZE, stage);
        for (int plane = 0; plane < PLANES; plane++, v += l->v_plane) {
            isa_winograd_prefetch(g, k, n0, columns, plane);
            for (int64_t i = 0; i < panels; i++)
                for (int64_t t = 0; t < count; t += TILE_ROWS) {
                    float *sums = m + plane * l->m_plane + (i * l->band + t) * TILE_COLUMNS;
                    if (i == 0) pixels_prefetch(l, v, t, count);
                    rows_multiply((int)at_most(count - t, TILE_ROWS), vectors[i], depth, v + t * DEPTH,
                                  u + i * PANEL_SIZE + plane * SLAB_PLANE, sums, block > 0);
                }
        }
    }
    for (int64_t t = 0; t < count; t++)
        for (int64_t j = 0; j < columns; j += LANES)
            result_store(g, l, first + t, n0 + j, m + (j / TILE_COLUMNS * l->band + t) * TILE_COLUMNS + j % TILE_COLUMNS);
}

/* Threads take bands; v and own: this thread's scratch. */
static void bands_apart(const cpu_gemm *g, const layout *l, const float *zeros, float *v, float *own) {
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < l->tiles; first += l->band) {
        int64_t count = at_most(l->tiles - first, l->band);
        for (int64_t block = 0; block < l->blocks; block++)
            pixels_transform(g, l, first, count, block, zeros, v + block * PLANES * l->v_plane);
        for (int64_t n = 0; n < g->n; n += l->panels * TILE_COLUMNS) task_run(g, l, first, count, n, v, own);
    }
}

/* Threads share a band's pixels v and take output channels. */
static void bands_shared(const cpu_gemm *g, const layout *l, const float *zeros, float *v, float *own) {
    for (int64_t first = 0; first < l->tiles; first += l->band) {
        int64_t count = at_most(l->tiles - first, l->band);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < l->blocks; block++)
            pixels_transform(g, l, first, count, block, zeros, v + block * PLANES * l->v_plane);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < g->n; n += l->panels * TILE_COLUMNS) task_run(g, l, first, count, n, v, own);
    }
}

void isa_winograd_run(const cpu_gemm *g, int threads, void *scratch) {
    threads = threads_of(g, threads);
    layout l = layout_of(g, threads);
    float *zeros = scratch, *v = zeros + g->k, *own = v + (l.apart ? threads : 1) * l.v;
    memset(zeros, 0, (size_t)g->k * sizeof *zeros);
#pragma omp parallel num_threads(threads)
    {
        int i = omp_get_thread_num();
        if (l.apart)
            bands_apart(g, &l, zeros, v + i * l.v, own + i * l.own);
        else
            bands_shared(g, &l, zeros, v, own + i * l.own);
    }
}
