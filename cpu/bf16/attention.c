/* Attention with operands rounded to bf16: the softmax's running maximum and sum (Milakov & Gimelshein 2018) over blocks of keys, so that
   no matrix of scores is stored. Keys and values of an image's heads are converted once. */
#include "cpu/bf16/attention.h"

#include <omp.h>

/* One thread's memory; what depends on the width lies behind it. */
typedef struct workspace {
    _Alignas(64) float scores[ROWS * OTHERS];
    bf16 weights[OTHER_STEPS * ROWS * STEP];
    float most[ROWS], change[ROWS]; /* of scores, by powers of 2; what older sums are multiplied by */
    float lanes[ROWS][16];          /* sums of exponentials, spread over lanes */
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

static void maxima_update(workspace *w, int64_t rows, float scale, bool first) {
    float here[ROWS];
    for (int64_t r = 0; r < ROWS; r++) {
        const float *s = w->scores + (r < rows ? r : 0) * OTHERS;
        vec m = vec_load(s);
        UNROLL for (int j = 1; j < VECTORS; j++) m = vec_max(m, vec_load(s + j * 16));
        here[r] = _mm512_reduce_max_ps((__m512)m);
    }
    for (int64_t r = 0; r < ROWS; r += 16) {
        vec old = vec_load(w->most + r), now = vec_load(here + r) * scale;
        if (!first) now = vec_max(old, now);
        vec_store(w->most + r, now);
        __mmask16 changed = _mm512_cmp_ps_mask((__m512)old, (__m512)now, _CMP_NEQ_OQ);
        vec change = first ? vec_splat(0) : exp2_short(old - now);
        vec_store(w->change + r, (vec)_mm512_mask_mov_ps(_mm512_set1_ps(1), changed, (__m512)change));
    }
}

static void weights_update(workspace *w, int64_t rows, float scale) {
    for (int64_t r = 0; r < rows; r++) {
        vec sum = vec_load(w->lanes[r]) * vec_splat(w->change[r]), base = vec_splat(w->most[r]);
        const float *s = w->scores + r * OTHERS;
        UNROLL for (int j = 0; j < VECTORS; j += 2) {
            vec low = exp2_short(vec_load(s + j * 16) * scale - base), high = exp2_short(vec_load(s + j * 16 + 16) * scale - base);
            sum += low + high;
            _mm512_store_si512(w->weights + (j / 2 * ROWS + r) * STEP, bf16_join(low, high));
        }
        vec_store(w->lanes[r], sum);
    }
}

static void sums_rescale(const workspace *w, int64_t rows, int64_t width, float *sums) {
    for (int64_t r = 0; r < rows; r++) {
        if (w->change[r] == 1) continue;
        float *row = sums + r * round_up(width, PANEL);
        for (int64_t i = 0; i < width; i += 16) vec_store(row + i, vec_load(row + i) * vec_splat(w->change[r]));
    }
}

static void block_store(const cpu_attention *a, const workspace *w, const float *sums, int64_t image, int64_t head, int64_t query,
                        int64_t rows) {
    for (int64_t r = 0; r < rows; r++) {
        float sum = _mm512_reduce_add_ps(_mm512_load_ps(w->lanes[r]));
        const float *row = sums + r * round_up(a->width, PANEL);
        float *o = a->o + ((image * a->tq + query + r) * a->heads + head) * a->width;
        for (int64_t i = 0; i < a->width; i += 16)
            _mm512_mask_storeu_ps(o + i, lanes_between(0, a->width - i), (__m512)(vec_load(row + i) * (1 / sum)));
        a->lse[(image * a->heads + head) * a->tq + query + r] = w->most[r] * LN_2 + logf(sum);
    }
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
    tokens q = tokens_of(a, a->q, a->tq, image, head);
    pack_left(&q, query, left);
    memset(w->lanes, 0, sizeof w->lanes);
    for (int64_t key = 0; key < a->tk; key += OTHERS) {
        score_block(row_tiles, left, offsets, width_steps(a), keys, key, w->scores);
        if (a->causal || a->tk - key < OTHERS) scores_mask(a, query, key, w->scores);
        maxima_update(w, rows, scale, key == 0);
        weights_update(w, rows, scale);
        if (key > 0) sums_rescale(w, rows, a->width, sums);
        sum_block(row_tiles, w->weights, offsets, values, key, a->tk, a->width, sums, key > 0);
    }
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
                    tokens k = tokens_of(a, a->k, a->tk, image, head), v = tokens_of(a, a->v, a->tk, image, head);
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
