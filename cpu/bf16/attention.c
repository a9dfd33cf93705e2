/* Attention with operands rounded to bf16: the softmax's running maximum and sum (Milakov & Gimelshein 2018) over blocks of keys, so that
   no matrix of scores is stored. Keys and values of an image's heads are converted once.

   While vector units take the exponentials of a block, the matrix unit multiplies the values of the one before and makes the scores of the
   next. What exponentials are relative to is not quite the maximum, but follows it when it has grown by SLACK powers of 2. */
#include "cpu/bf16/attention.h"

#include <omp.h>

static const float SLACK = 16;
static const int64_t WEIGHT_OFFSETS[OTHER_STEPS] = {0, STEP};

/* One thread's memory; what depends on the width lies behind it. */
typedef struct workspace {
    _Alignas(64) float scores[2][ROWS * OTHERS]; /* of two blocks; a row's weights, bf16, take the place of its scores */
    float base[ROWS], limit[ROWS];               /* by powers of 2; of scores: where the base must move */
    float change[ROWS];                          /* what older sums are to be multiplied by */
    float lanes[ROWS][16];                       /* sums of exponentials, spread over lanes */
    bool changed;
} workspace;

typedef struct sizes {
    int64_t packed, left, sums, offsets; /* of keys or values of one head; of a block: elements */
    size_t shared, own;                  /* bytes */
} sizes;

static sizes sizes_of(const cpu_attention *a) {
    int64_t steps = width_steps(a);
    sizes s = {.packed = packed_size(a, a->tk), .left = steps * ROWS * STEP, .sums = ROWS * steps * PANEL};
    s.offsets = round_up(most(steps, OTHER_STEPS), 8);
    s.shared = (size_t)(a->heads * 2 * s.packed) * sizeof(bf16) + (size_t)s.offsets * sizeof(int64_t);
    s.own = sizeof(workspace) + (size_t)s.left * sizeof(bf16) + (size_t)s.sums * sizeof(float);
    return s;
}

/* Keys that query t must not see get the lowest score there is. */
static void scores_mask(const cpu_attention *a, int64_t query, int64_t key, float *scores) {
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t j = 0; j < OTHERS; j += 16) {
            int64_t end = (a->causal ? least(a->tk, query + r + 1) : a->tk) - key - j;
            _mm512_mask_store_ps(scores + r * OTHERS + j, (__mmask16)~lanes_between(0, end), _mm512_set1_ps(-3e38f));
        }
}

static void base_move(workspace *w, int64_t r, float most, float scale) {
    float base = most * scale, change = exp2f(w->base[r] - base);
    w->base[r] = base;
    w->limit[r] = (base + SLACK) / scale;
    w->change[r] *= change;
    vec_store(w->lanes[r], vec_load(w->lanes[r]) * change);
    w->changed = true;
}

/* A block's scores on the way to weights. */
typedef struct weighing {
    workspace *w;
    float *scores;
    float scale;
} weighing;

static void rows_weigh(const void *work, int64_t first, int64_t end) {
    const weighing *x = work;
    workspace *w = x->w;
    for (int64_t r = first; r < end; r++) {
        float *scores = x->scores + r * OTHERS;
        bf16 *weights = (bf16 *)(void *)scores;
        vec s[VECTORS], most;
        UNROLL for (int j = 0; j < VECTORS; j++) s[j] = vec_load(scores + j * 16);
        most = s[0];
        UNROLL for (int j = 1; j < VECTORS; j++) most = vec_max(most, s[j]);
        if (_mm512_cmp_ps_mask((__m512)most, _mm512_set1_ps(w->limit[r]), _CMP_GT_OQ))
            base_move(w, r, _mm512_reduce_max_ps((__m512)most), x->scale);
        vec sum = vec_load(w->lanes[r]), base = vec_splat(w->base[r]);
        UNROLL for (int j = 0; j < VECTORS; j += 2) {
            vec low = exp2_short(s[j] * x->scale - base), high = exp2_short(s[j + 1] * x->scale - base);
            sum += low + high;
            _mm512_store_si512(weights + j * 16, bf16_join(low, high));
        }
        vec_store(w->lanes[r], sum);
    }
}

/* sums: NULL where there are none yet. */
static void sums_rescale(workspace *w, int64_t rows, int64_t width, float *sums) {
    if (!w->changed) return;
    for (int64_t r = 0; r < rows; r++) {
        if (w->change[r] == 1) continue;
        float *row = sums ? sums + r * round_up(width, PANEL) : NULL;
        for (int64_t i = 0; sums && i < width; i += 16) vec_store(row + i, vec_load(row + i) * vec_splat(w->change[r]));
        w->change[r] = 1;
    }
    w->changed = false;
}

static void block_store(const cpu_attention *a, const workspace *w, const float *sums, int64_t image, int64_t head, int64_t query,
                        int64_t rows) {
    for (int64_t r = 0; r < rows; r++) {
        float sum = _mm512_reduce_add_ps(_mm512_load_ps(w->lanes[r]));
        const float *row = sums + r * round_up(a->width, PANEL);
        int64_t o = ((image * a->tq + query + r) * a->heads + head) * a->width;
        for (int64_t i = 0; i < a->width; i += 16)
            bf16_store(a->o, a->o_type, o + i, lanes_between(0, a->width - i), vec_load(row + i) * (1 / sum));
        a->lse[(image * a->heads + head) * a->tq + query + r] = w->base[r] * LN_2 + logf(sum);
    }
}

/* Scores of ROWS queries with OTHERS keys from `key` on. */
static void scores_make(const cpu_attention *a, int row_tiles, const bf16_left *queries, int64_t query, int64_t key, const bf16 *keys,
                        float *scores, const bf16_aside *aside) {
    score_block(row_tiles, queries, width_steps(a), keys, key, scores, aside);
    if (a->causal || a->tk - key < OTHERS) scores_mask(a, query, key, scores);
}

/* ROWS queries of a head. keys, values: packed. */
static void block_run(const cpu_attention *a, const sizes *size, int64_t image, int64_t head, int64_t query, const bf16 *keys,
                      const bf16 *values, const int64_t *offsets, void *own) {
    workspace *w = own;
    float *sums = (float *)(w + 1);
    bf16 *left = (bf16 *)(void *)(sums + size->sums);
    int64_t rows = least(a->tq - query, ROWS);
    int row_tiles = rows > SIDE ? 2 : 1;
    float scale = a->scale * LOG2_E;
    tokens q = tokens_of(a, a->q, a->q_type, a->tq, image, head);
    pack_left(&q, query, left);
    memset(w->lanes, 0, sizeof w->lanes);
    for (int r = 0; r < ROWS; r++) w->base[r] = w->limit[r] = -INFINITY, w->change[r] = 1;
    const bf16_left queries = {left, offsets, STEP, true};
    const int64_t half = quotient_up(rows, 2);
    scores_make(a, row_tiles, &queries, query, 0, keys, w->scores[0], NULL);
    for (int64_t key = 0; key < a->tk; key += OTHERS) {
        float *here = w->scores[key / OTHERS % 2], *other = w->scores[1 - key / OTHERS % 2];
        const weighing weigh = {w, here, scale};
        const bf16_aside early = {rows_weigh, &weigh, 0, half}, late = {rows_weigh, &weigh, half, rows};
        const bf16_left before = {(bf16 *)(void *)other, WEIGHT_OFFSETS, 2 * OTHERS, true};
        if (key > 0)
            sum_block(row_tiles, &before, values, key - OTHERS, a->tk, a->width, sums, key > OTHERS, &early);
        else
            rows_weigh(&weigh, 0, half);
        if (key + OTHERS < a->tk)
            scores_make(a, row_tiles, &queries, query, key + OTHERS, keys, other, &late);
        else
            rows_weigh(&weigh, half, rows);
        sums_rescale(w, rows, a->width, key > 0 ? sums : NULL);
    }
    int64_t last = (a->tk - 1) / OTHERS * OTHERS;
    const bf16_left weights = {(bf16 *)(void *)w->scores[last / OTHERS % 2], WEIGHT_OFFSETS, 2 * OTHERS, true};
    sum_block(row_tiles, &weights, values, last, a->tk, a->width, sums, last > 0, NULL);
    block_store(a, w, sums, image, head, query, rows);
}

size_t bf16_attention_scratch(const cpu_attention *a, int threads) {
    sizes size = sizes_of(a);
    return size.shared + (size_t)threads * size.own;
}

void bf16_attention_run(const cpu_attention *a, int threads, void *scratch) {
    sizes size = sizes_of(a);
    int64_t *offsets = scratch;
    bf16 *packed = (bf16 *)(offsets + size.offsets);
    char *all = (char *)scratch + size.shared;
    for (int64_t i = 0; i < size.offsets; i++) offsets[i] = i * ROWS * STEP;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        void *own = all + (size_t)omp_get_thread_num() * size.own;
        memset(own, 0, sizeof(workspace));
        bf16_begin();
        for (int64_t image = 0; image < a->images; image++) {
#pragma omp for collapse(2) schedule(static)
            for (int64_t head = 0; head < a->heads; head++)
                for (int64_t key = 0; key < a->tk; key += OTHERS) {
                    tokens k = tokens_of(a, a->k, a->k_type, a->tk, image, head), v = tokens_of(a, a->v, a->v_type, a->tk, image, head);
                    pack_columns(&k, key, packed + head * 2 * size.packed);
                    pack_rows(&v, key, packed + (head * 2 + 1) * size.packed);
                }
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t head = 0; head < a->heads; head++)
                for (int64_t query = 0; query < a->tq; query += ROWS)
                    block_run(a, &size, image, head, query, packed + head * 2 * size.packed, packed + (head * 2 + 1) * size.packed, offsets,
                              own);
        }
        bf16_end();
    }
}
