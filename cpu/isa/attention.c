/* Attention, forward: softmax(scale Q K^T) V over blocks of keys, with a running maximum and sum per query (Dao et al., FlashAttention,
   2022). Lanes are queries: S^T = K Q^T and O^T += V^T P^T, so that no maximum or sum runs across lanes. */
#include "cpu/isa/attention.h"

#include <math.h>
#include <omp.h>

/* A panel here is TILE_COLUMNS queries; a task takes several, so that a block of keys and values is copied once for all. */
enum { MOST_PANELS = 128 / TILE_COLUMNS, MOST_KEYS = 128, WIDE = 256 };
static const float LOG2_E = 1.44269504f;

/* Sizes, in floats where they are of memory. */
typedef struct plan {
    int64_t queries, blocks; /* of a task; tasks of a head */
    int64_t keys;            /* of a block */
    int64_t panel;           /* one panel of queries or of sums */
    int64_t rows;            /* a block of keys, or of values */
    int64_t thread;          /* a thread's memory */
} plan;

static plan make_plan(const cpu_attention *a, int threads) {
    plan p = {.keys = a->width > WIDE ? MOST_KEYS / 2 : MOST_KEYS, .panel = a->width * TILE_COLUMNS};
    int64_t panels = MOST_PANELS;
    while (panels > 1 && a->images * a->heads * (a->tq / (panels * TILE_COLUMNS)) < 2 * threads) panels /= 2;
    p.queries = panels * TILE_COLUMNS;
    p.blocks = (a->tq + p.queries - 1) / p.queries;
    p.rows = p.keys * row_stride(a->width);
    p.thread = 2 * panels * p.panel + 2 * p.rows + p.keys * TILE_COLUMNS;
    return p;
}

size_t isa_attention_scratch(const cpu_attention *a, int threads) {
    return (size_t)make_plan(a, threads).thread * sizeof(float) * (size_t)threads;
}

/* s [rows, TILE_COLUMNS] = keys [rows, width] times a panel of queries; most: the maximum over rows. */
INLINE void scores_tile(const int rows, int64_t width, const float *keys, const float *q, float *s, vec most[TILE_VECTORS]) {
    vec sum[TILE_ROWS][MOST_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) { UNROLL for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = vec_splat(0); }
    tile_sum(sum, rows, TILE_VECTORS, false, width, keys, row_stride(width), q, LANES, width * LANES);
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < TILE_VECTORS; j++) {
            vec_store(s + i * TILE_COLUMNS + j * LANES, sum[i][j]);
            most[j] = vec_max(most[j], sum[i][j]);
        }
    }
}

/* o [rows, lanes] = fade * o + values [count, rows]^T p [count, TILE_COLUMNS], where o is part of two panels. */
INLINE void values_tile(const int rows, int64_t width, int64_t count, const float *values, const float *p, const vec fade[TILE_VECTORS],
                        float *o) {
    vec sum[TILE_ROWS][MOST_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = vec_load(o + j * width * LANES + i * LANES) * fade[j];
    }
    tile_sum(sum, rows, TILE_VECTORS, true, count, values, row_stride(width), p, TILE_COLUMNS, LANES);
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < TILE_VECTORS; j++) vec_store(o + j * width * LANES + i * LANES, sum[i][j]);
    }
}

#ifdef __AVX512F__
#define EACH_ROWS(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#else
#define EACH_ROWS(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#endif

static void scores_block(int64_t count, int64_t width, const float *keys, const float *q, float *s, vec most[TILE_VECTORS]) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= count; i += TILE_ROWS)
        scores_tile(TILE_ROWS, width, keys + i * row_stride(width), q, s + i * TILE_COLUMNS, most);
#define CASE(rows) \
    if (count - i == rows) scores_tile(rows, width, keys + i * row_stride(width), q, s + i * TILE_COLUMNS, most);
    EACH_ROWS(CASE)
#undef CASE
}

static void values_block(int64_t count, int64_t width, const float *values, const float *p, const vec fade[TILE_VECTORS], float *o) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= width; i += TILE_ROWS) values_tile(TILE_ROWS, width, count, values + i, p, fade, o + i * LANES);
#define CASE(rows) \
    if (width - i == rows) values_tile(rows, width, count, values + i, p, fade, o + i * LANES);
    EACH_ROWS(CASE)
#undef CASE
}

/* Hides keys behind their query: key i and query lane l are shown where i <= l + ahead. The maximum is taken anew. */
static void hide_later_keys(int64_t count, int64_t ahead, float *s, vec most[TILE_VECTORS]) {
    for (int64_t i = 0; i < count; i++) {
        for (int64_t l = 0; l < TILE_COLUMNS && l + ahead < i; l++) s[i * TILE_COLUMNS + l] = -INFINITY;
        for (int j = 0; j < TILE_VECTORS; j++) most[j] = vec_max(most[j], vec_load(s + i * TILE_COLUMNS + j * LANES));
    }
}

/* Scores become exp(score - most); total gains their sum. */
static void exp_block(int64_t count, float *s, const vec most[TILE_VECTORS], vec total[TILE_VECTORS]) {
    vec m[TILE_VECTORS], sum[TILE_VECTORS];
    UNROLL for (int j = 0; j < TILE_VECTORS; j++) m[j] = most[j], sum[j] = total[j];
    for (int64_t i = 0; i < count; i++) {
        UNROLL for (int j = 0; j < TILE_VECTORS; j++) {
            vec p = vec_exp2((vec_load(s + i * TILE_COLUMNS + j * LANES) - m[j]) * LOG2_E);
            vec_store(s + i * TILE_COLUMNS + j * LANES, p);
            sum[j] += p;
        }
    }
    UNROLL for (int j = 0; j < TILE_VECTORS; j++) total[j] = sum[j];
}

/* What a panel of queries has seen so far. */
typedef struct panel_state {
    vec most[TILE_VECTORS], total[TILE_VECTORS];
} panel_state;

/* Takes `count` keys into one panel. ahead: see hide_later_keys; at least count - 1 where all keys are shown. */
static void panel_attend(panel_state *state, int64_t count, int64_t width, int64_t ahead, const float *keys, const float *values,
                         const float *q, float *s, float *o) {
    vec before[TILE_VECTORS], fade[TILE_VECTORS];
    memcpy(before, state->most, sizeof before);
    scores_block(count, width, keys, q, s, state->most);
    if (ahead < count - 1) {
        memcpy(state->most, before, sizeof before);
        hide_later_keys(count, ahead, s, state->most);
    }
    for (int j = 0; j < TILE_VECTORS; j++) {
        fade[j] = vec_exp2((before[j] - state->most[j]) * LOG2_E);
        state->total[j] *= fade[j];
    }
    exp_block(count, s, state->most, state->total);
    values_block(count, width, values, s, fade, o);
}

/* o and lse of `count` <= TILE_COLUMNS queries. */
static void panel_write(const cpu_attention *a, const panel_state *state, int64_t count, const float *sums, float *o, float *lse) {
    float most[TILE_COLUMNS], total[TILE_COLUMNS];
    memcpy(most, state->most, sizeof most);
    memcpy(total, state->total, sizeof total);
    for (int64_t t = 0; t < count; t++) lse[t] = most[t] + logf(total[t]);
    for (int64_t j = 0; j * LANES < count; j++)
        copy_from_panel(o + j * LANES * a->heads * a->width, a->heads * a->width, sums + j * a->width * LANES, count - j * LANES, a->width,
                        1.0f / state->total[j]);
}

static void task_run(const cpu_attention *a, const plan *p, int64_t task, float *memory) {
    int64_t width = a->width, ld = a->heads * width, n = task / p->blocks / a->heads, h = task / p->blocks % a->heads;
    int64_t first = task % p->blocks * p->queries, count = least(p->queries, a->tq - first),
            panels = (count + TILE_COLUMNS - 1) / TILE_COLUMNS;
    int64_t shown = a->causal ? least(first + count, a->tk) : a->tk; /* keys that any of these queries sees */
    float *keys = memory, *values = keys + p->rows, *q = values + p->rows, *o = q + panels * p->panel, *s = o + panels * p->panel;
    panel_state state[MOST_PANELS];

    for (int64_t i = 0; i < panels; i++)
        for (int j = 0; j < TILE_VECTORS; j++) state[i].most[j] = vec_splat(-INFINITY), state[i].total[j] = vec_splat(0);
    for (int64_t i = 0; i < panels * p->panel; i++) q[i] = o[i] = 0;
    copy_to_panels(q, (const float *)a->q + (n * a->tq + first) * ld + h * width, ld, count, width, a->scale);
    for (int64_t key = 0; key < shown; key += p->keys) {
        int64_t k_count = least(p->keys, shown - key), from = (n * a->tk + key) * ld + h * width;
        copy_rows(keys, (const float *)a->k + from, ld, k_count, width);
        copy_rows(values, (const float *)a->v + from, ld, k_count, width);
        for (int64_t i = 0; i < panels; i++) {
            int64_t ahead = a->causal ? first + i * TILE_COLUMNS - key : a->tk;
            if (ahead + TILE_COLUMNS > 0)
                panel_attend(&state[i], k_count, width, ahead, keys, values, q + i * p->panel, s, o + i * p->panel);
        }
    }
    for (int64_t i = 0; i < panels; i++) {
        int64_t t = first + i * TILE_COLUMNS;
        panel_write(a, &state[i], least(TILE_COLUMNS, first + count - t), o + i * p->panel,
                    (float *)a->o + (n * a->tq + t) * ld + h * width, a->lse + (n * a->heads + h) * a->tq + t);
    }
}

void isa_attention_run(const cpu_attention *a, int threads, void *scratch) {
    plan p = make_plan(a, threads);
    int64_t tasks = a->images * a->heads * p.blocks;
#pragma omp parallel num_threads(threads) if (tasks > 1 && threads > 1)
    {
        float *memory = (float *)scratch + omp_get_thread_num() * p.thread;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) task_run(a, &p, task, memory);
    }
}
