/* The fp32 product on the register tile: linear layers and direct convolution, forward and backward-data.

   A task is a block of rows times some panels of COLUMNS columns of C. It goes through the taps and through k in pieces of at most
   K_BLOCK: expands that piece of the weights into its panel (fp32, in the first-level cache) and runs the tile over its rows, TILE_ROWS
   at a time, adding to sums that stay in the cache; with the last piece the finished rows leave for C. Neither the cut into tasks nor their
   order changes a sum, so the number of threads does not either. */
#include "cpu/isa/rows.h"

#include <omp.h>

/* A tile three vectors wide loads less for each multiplication, where there are registers for it: 10 % faster. A panel fits the L1 cache.
 */
#ifdef __AVX512F__
enum { VECTORS = 3, K_BLOCK = 256 };
#else
enum { VECTORS = 2, K_BLOCK = 320 };
#endif
enum {
    COLUMNS = VECTORS * LANES,
    ROW_BLOCK = 64 * TILE_ROWS,
    LEAST_ROWS = 8 * TILE_ROWS, /* of a task, where there are more: fewer, and expanding weights takes longer than using them */
    NARROW = 16,                /* k up to which the taps of a pixel are gathered into one row */
    TASKS_PER_THREAD = 4
};
/* Multiply-adds below which waking threads costs more than they save. */
static const double SMALL = 1 << 22;

typedef struct blocking {
    int64_t rows, row_blocks;       /* of a task; of C */
    int64_t columns, column_blocks; /* the same */
    int64_t depth, piece;           /* k, and how much of it at a time */
    bool gathered;                  /* depth is taps * k */
    bool single;                    /* one piece is all */
} blocking;

/* One piece of a task's work. */
typedef struct step {
    int tap;
    int64_t k, depth; /* first, count */
    int64_t column, columns;
    bool last;
} step;

static blocking gemm_blocking(const cpu_gemm *g, int threads) {
    blocking by = {.gathered = g->gather && g->taps > 1 && g->k <= NARROW && g->taps * g->k <= K_BLOCK};
    by.depth = by.gathered ? g->taps * g->k : g->k;
    by.piece = least(by.depth, round_up(quotient_up(by.depth, quotient_up(by.depth, K_BLOCK)), LANES));
    by.single = by.piece == by.depth && (by.gathered || g->taps == 1);
    int64_t panels = by.single ? K_BLOCK / by.depth : 1;
    by.columns = round_up(least(panels * COLUMNS, g->n), COLUMNS);
    by.column_blocks = quotient_up(g->n, by.columns);
    int64_t blocks = quotient_up(g->m, ROW_BLOCK), wanted = quotient_up((int64_t)threads * TASKS_PER_THREAD, by.column_blocks);
    if (blocks < wanted) blocks = least(wanted, quotient_up(g->m, LEAST_ROWS));
    by.rows = round_up(quotient_up(g->m, blocks), TILE_ROWS);
    by.row_blocks = quotient_up(g->m, by.rows);
    return by;
}

/* ---- one thread's memory ---- */

typedef struct workspace {
    float *panel;    /* [panel][k][column] */
    float *sums;     /* [row][column] */
    float *gathered; /* [row of a tile][tap][k] */
    float *zeros;    /* [k] */
    pixel *pixels;   /* [row] */
    bool *started;   /* [row / TILE_ROWS]: whether sums hold something */
} workspace;

/* The next `bytes` of memory, in whole cache lines; only counts where memory is NULL. */
static void *take(char *memory, size_t *used, int64_t bytes) {
    size_t at = *used;
    *used += (size_t)round_up(bytes, 64);
    return memory ? memory + at : NULL;
}

/* Returns how much a thread needs. memory: NULL, or that much. */
static size_t workspace_divide(const cpu_gemm *g, const blocking *by, char *memory, workspace *w) {
    const int64_t real = (int64_t)sizeof(float);
    size_t used = 0;
    w->panel = take(memory, &used, by->piece * by->columns * real);
    w->sums = take(memory, &used, (by->single ? TILE_ROWS : by->rows) * COLUMNS * real);
    w->gathered = take(memory, &used, by->gathered ? TILE_ROWS * by->depth * real : 0);
    w->zeros = take(memory, &used, g->gather ? by->piece * real : 0);
    w->pixels = take(memory, &used, g->gather ? by->rows * (int64_t)sizeof(pixel) : 0);
    w->started = take(memory, &used, by->rows / TILE_ROWS);
    return used;
}

/* ---- weights ---- */

/* Row k of the piece is a row of B: convert. `at`: the index in B of the piece's first element. */
INLINE void expand_rows(const cpu_gemm *g, const dtype type, int64_t at, int64_t depth, int64_t columns, float *panel) {
    for (int64_t k = 0; k < depth; k++, at += g->n)
        for (int64_t j = 0; j < columns; j += LANES) {
            vec v = columns - j >= LANES ? vec_load_as(g->b, type, at + j) : vec_load_part(g->b, type, at + j, (int)(columns - j));
            vec_store(panel + k * COLUMNS + j, v);
        }
}

/* Column j of the piece is a row of B: convert, and transpose in registers. */
INLINE void expand_columns(const cpu_gemm *g, const dtype type, int64_t at, int64_t depth, int64_t columns, float *panel) {
    for (int64_t j = 0; j < columns; j += LANES)
        for (int64_t k = 0; k < depth; k += LANES) {
            vec block[LANES];
            int64_t from = at + j * g->k + k, here = least(columns - j, LANES), deep = least(depth - k, LANES);
            if (here == LANES && deep == LANES) {
                UNROLL for (int i = 0; i < LANES; i++) block[i] = vec_load_as(g->b, type, from + i * g->k);
            } else {
                for (int i = 0; i < LANES; i++) block[i] = i < here ? vec_load_part(g->b, type, from + i * g->k, (int)deep) : vec_splat(0);
            }
            vec_transpose(block);
            float *out = panel + k * COLUMNS + j;
            if (deep == LANES) {
                UNROLL for (int i = 0; i < LANES; i++) vec_store(out + i * COLUMNS, block[i]);
            } else {
                for (int i = 0; i < deep; i++) vec_store(out + i * COLUMNS, block[i]);
            }
        }
}

INLINE void expand_as(const cpu_gemm *g, const dtype type, int tap, int64_t k, int64_t depth, int64_t column, int64_t columns,
                      float *panel) {
    int64_t at = tap * g->n * g->k;
    if (g->kn)
        expand_rows(g, type, at + k * g->n + column, depth, columns, panel);
    else
        expand_columns(g, type, at + column * g->k + k, depth, columns, panel);
}

/* k..k + depth of one tap of B and at most COLUMNS columns as fp32 [depth, COLUMNS]. */
static void expand(const cpu_gemm *g, int tap, int64_t k, int64_t depth, int64_t column, int64_t columns, float *panel) {
    switch (g->b_type) {
    case DTYPE_F16: expand_as(g, DTYPE_F16, tap, k, depth, column, columns, panel); return;
    case DTYPE_BF16: expand_as(g, DTYPE_BF16, tap, k, depth, column, columns, panel); return;
    default: expand_as(g, DTYPE_F32, tap, k, depth, column, columns, panel); return;
    }
}

static void expand_step(const cpu_gemm *g, const blocking *by, const step *s, float *panel) {
    for (int64_t j = 0; j < s->columns; j += COLUMNS) {
        int64_t columns = least(s->columns - j, COLUMNS);
        for (int tap = 0; tap < (by->gathered ? g->taps : 1); tap++) {
            int64_t depth = by->gathered ? g->k : s->depth;
            expand(g, by->gathered ? tap : s->tap, s->k, depth, s->column + j, columns, panel);
            panel += depth * COLUMNS;
        }
    }
}

/* ---- rows ---- */

/* Rows of A for rows i.. of the task, at the step's k. False: all of them are zero. */
static bool find_rows(const cpu_gemm *g, const step *s, const workspace *w, int64_t row, int64_t i, int count,
                      const float *rows[TILE_ROWS]) {
    if (!g->gather) {
        for (int r = 0; r < count; r++) rows[r] = (const float *)g->a + (row + i + r) * g->lda + s->k;
        return true;
    }
    int ty = s->tap / g->gather->kernel, tx = s->tap % g->gather->kernel;
    bool any = false;
    for (int r = 0; r < count; r++) {
        int64_t source = pixel_sees(g->gather, &w->pixels[i + r], ty, tx);
        rows[r] = source >= 0 ? (const float *)g->a + source * g->lda + s->k : w->zeros;
        any |= source >= 0;
    }
    return any;
}

/* The same with all taps, one behind the other, copied into rows. */
static void gather_rows(const cpu_gemm *g, workspace *w, int64_t i, int count, const float *rows[TILE_ROWS]) {
    const float *a = g->a;
    float *out = w->gathered;
    for (int r = 0; r < count; r++) {
        rows[r] = out;
        for (int tap = 0; tap < g->taps; tap++, out += g->k) {
            int64_t source = pixel_sees(g->gather, &w->pixels[i + r], tap / g->gather->kernel, tap % g->gather->kernel);
            for (int64_t k = 0; k < g->k; k++) out[k] = source >= 0 ? a[source * g->lda + k] : 0;
        }
    }
}

/* ---- the end of a row ---- */

/* sums [columns] of row `row`, from `column` on, to C. */
static void finish_row(const cpu_gemm *g, const float *sums, int64_t row, int64_t column, int64_t columns) {
    const float *bias = g->bias ? g->bias + column : NULL;
    const float *shift = g->shift ? g->shift + row / g->rows_per_image * g->n + column : NULL;
    const float *residual = g->residual ? g->residual + row * g->n + column : NULL;
    float *c = (float *)g->c + row * g->n + column;
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) {
        vec v = vec_load(sums + j) * vec_splat(g->scale);
        if (bias) v += vec_load(bias + j);
        if (shift) v += vec_load(shift + j);
        if (residual) v += vec_load(residual + j);
        vec_store(c + j, v);
    }
    for (; j < columns; j++) {
        float v = sums[j] * g->scale;
        if (bias) v += bias[j];
        if (shift) v += shift[j];
        if (residual) v += residual[j];
        c[j] = v;
    }
}

/* ---- tasks ---- */

static void run_rows(const cpu_gemm *g, const blocking *by, const step *s, workspace *w, int64_t row, int64_t i, int count) {
    const float *rows[TILE_ROWS];
    bool any = true, *started = &w->started[i / TILE_ROWS];
    float *sums = w->sums + (by->single ? 0 : i * COLUMNS);
    if (by->gathered)
        gather_rows(g, w, i, count, rows);
    else
        any = find_rows(g, s, w, row, i, count, rows);
    if (!any && !s->last) return;
    if (!any && !*started) memset(sums, 0, sizeof *sums * TILE_ROWS * COLUMNS);
    for (int64_t j = 0; j < s->columns; j += COLUMNS) {
        int64_t columns = least(s->columns - j, COLUMNS);
        if (any)
            isa_tile_run(count, (int)quotient_up(columns, LANES), s->depth, rows, w->panel + j * s->depth, COLUMNS, sums, COLUMNS,
                         !by->single && *started);
        for (int r = 0; s->last && r < count; r++)
            finish_row(g, sums + r * COLUMNS, g->gather ? w->pixels[i + r].row : row + i + r, s->column + j, columns);
    }
    *started = true;
}

static void run_task(const cpu_gemm *g, const blocking *by, int64_t task, workspace *w) {
    int64_t row = task / by->column_blocks * by->rows, count = least(by->rows, g->m - row);
    step s = {.column = task % by->column_blocks * by->columns};
    s.columns = least(by->columns, g->n - s.column);
    if (g->gather) pixels_list(g->gather, row, count, w->pixels);
    memset(w->started, 0, (size_t)(by->rows / TILE_ROWS));
    int taps = by->gathered ? 1 : g->taps;
    for (s.tap = 0; s.tap < taps; s.tap++)
        for (s.k = 0; s.k < by->depth; s.k += by->piece) {
            s.depth = least(by->piece, by->depth - s.k);
            s.last = s.tap == taps - 1 && s.k + s.depth == by->depth;
            expand_step(g, by, &s, w->panel);
            for (int64_t i = 0; i < count; i += TILE_ROWS) run_rows(g, by, &s, w, row, i, (int)least(TILE_ROWS, count - i));
        }
}

static int useful_threads(const cpu_gemm *g, int threads) {
    return (double)g->m * (double)g->n * (double)g->k * g->taps < SMALL ? 1 : threads;
}

size_t isa_gemm_scratch(const cpu_gemm *g, int threads) {
    threads = useful_threads(g, threads);
    blocking by = gemm_blocking(g, threads);
    return (size_t)threads * workspace_divide(g, &by, NULL, &(workspace){0});
}

void isa_gemm_run(const cpu_gemm *g, int threads, void *scratch) {
    threads = useful_threads(g, threads);
    blocking by = gemm_blocking(g, threads);
    size_t bytes = workspace_divide(g, &by, NULL, &(workspace){0});
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        workspace w;
        workspace_divide(g, &by, (char *)scratch + (size_t)omp_get_thread_num() * bytes, &w);
        if (g->gather) memset(w.zeros, 0, (size_t)by.piece * sizeof *w.zeros);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < by.row_blocks * by.column_blocks; task++) run_task(g, &by, task, &w);
    }
}
