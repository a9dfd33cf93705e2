/* Attention's gradient with operands rounded to bf16 (Dao et al. 2022). Two passes, each of which recomputes the scores: over blocks of
   queries for dq, over blocks of keys for dk and dv. So every sum has one place and one order, and any number of threads finds work.

   p = exp(scale q k^T - lse), delta = sum of o * do, ds = p * (do v^T - delta); dq = scale ds k, dk = scale ds^T q, dv = p^T do. */
#include "cpu/bf16/attention.h"

#include <omp.h>

/* One thread's memory; what depends on the width lies behind it. */
typedef struct workspace {
    _Alignas(64) float scores[ROWS * OTHERS];
    float slopes[ROWS * OTHERS]; /* do v^T, or its transpose */
    bf16 p[OTHER_STEPS * ROWS * STEP], ds[OTHER_STEPS * ROWS * STEP];
} workspace;

typedef struct sizes {
    int64_t queries, keys, packed; /* of a head: of both padded; of either packed, at most */
    int64_t left, sums, offsets;
    size_t shared, own; /* bytes */
} sizes;

enum { PACKS = 4 };

/* A call; all threads. */
typedef struct job {
    const cpu_attention *a;
    sizes size;
    int64_t *offsets;
    float *lse, *delta; /* [heads][queries]: the former by powers of 2 */
    bf16 *packed;       /* [heads][PACKS] */
} job;

static sizes sizes_of(const cpu_attention *a) {
    int64_t steps = width_steps(a);
    sizes s = {.queries = round_up(a->tq, OTHERS),
               .keys = round_up(a->tk, OTHERS),
               .packed = most(packed_size(a, a->tq), packed_size(a, a->tk)),
               .left = steps * ROWS * STEP,
               .sums = ROWS * steps * PANEL};
    s.offsets = round_up(most(steps, OTHER_STEPS), 8);
    s.shared = (size_t)s.offsets * sizeof(int64_t) + (size_t)(a->heads * 2 * s.queries) * sizeof(float) +
               (size_t)(a->heads * PACKS * s.packed) * sizeof(bf16);
    s.own = sizeof(workspace) + 2 * ((size_t)s.left * sizeof(bf16) + (size_t)s.sums * sizeof(float));
    return s;
}

static job job_of(const cpu_attention *a, void *scratch) {
    job j = {.a = a, .size = sizes_of(a), .offsets = scratch};
    j.lse = (float *)(j.offsets + j.size.offsets);
    j.delta = j.lse + a->heads * j.size.queries;
    j.packed = (bf16 *)(void *)(j.delta + a->heads * j.size.queries);
    for (int64_t i = 0; i < j.size.offsets; i++) j.offsets[i] = i * ROWS * STEP;
    return j;
}

/* OTHERS queries: lse and delta. Behind the last one an lse that makes p nothing. */
static void rows_prepare(const job *j, int64_t image, int64_t head, int64_t first) {
    const cpu_attention *a = j->a;
    tokens o = tokens_of(a, a->o, a->o_type, a->tq, image, head), dout = tokens_of(a, a->dout, a->dout_type, a->tq, image, head);
    for (int64_t t = first; t < first + OTHERS; t++) {
        vec sum = vec_splat(0);
        for (int64_t i = 0; t < a->tq && i < a->width; i += 16) {
            int64_t count = least(a->width - i, 16);
            sum += bf16_load_first(o.data, o.type, t * o.pitch + i, count) * bf16_load_first(dout.data, dout.type, t * o.pitch + i, count);
        }
        j->delta[head * j->size.queries + t] = _mm512_reduce_add_ps((__m512)sum);
        j->lse[head * j->size.queries + t] = t < a->tq ? a->lse[(image * a->heads + head) * a->tq + t] * LOG2_E : 1e30f;
    }
}

/* Which lanes of row r see it, when the rows are queries from `row` on and the lanes keys from `other` on, or the other way round. */
INLINE __mmask16 lanes_seen(const cpu_attention *a, const bool by_query, int64_t row, int64_t other) {
    if (by_query) return lanes_between(0, (a->causal ? least(a->tk, row + 1) : a->tk) - other);
    return lanes_between(a->causal ? row - other : 0, a->tq - other);
}

/* p and ds from scores and slopes. lse, delta: of the rows' queries, or the lanes'. */
INLINE void weights_update(const cpu_attention *a, workspace *w, const bool by_query, int64_t row, int64_t other, const float *lse,
                           const float *delta) {
    float scale = a->scale * LOG2_E;
    bool masked = a->causal || (by_query ? a->tk : a->tq) - other < OTHERS;
    for (int64_t r = 0; r < ROWS; r++) {
        vec base = vec_splat(by_query ? lse[r] : 0), less = vec_splat(by_query ? delta[r] : 0);
        UNROLL for (int j = 0; j < VECTORS; j += 2) {
            vec p[2], ds[2];
            UNROLL for (int i = 0; i < 2; i++) {
                int64_t lane = (j + i) * 16, at = r * OTHERS + lane;
                p[i] = exp2_short(vec_load(w->scores + at) * scale - (by_query ? base : vec_load(lse + lane)));
                if (masked) p[i] = (vec)_mm512_maskz_mov_ps(lanes_seen(a, by_query, row + r, other + lane), (__m512)p[i]);
                ds[i] = p[i] * (vec_load(w->slopes + at) - (by_query ? less : vec_load(delta + lane)));
            }
            if (!by_query) _mm512_store_si512(w->p + (j / 2 * ROWS + r) * STEP, bf16_join(p[0], p[1]));
            _mm512_store_si512(w->ds + (j / 2 * ROWS + r) * STEP, bf16_join(ds[0], ds[1]));
        }
    }
}

/* To a gradient, from element `first` on, one row for each token. */
static void rows_store(const cpu_attention *a, const float *sums, float scale, void *out, dtype type, int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; r++, first += a->heads * a->width, sums += round_up(a->width, PANEL))
        for (int64_t i = 0; i < a->width; i += 16)
            bf16_store(out, type, first + i, lanes_between(0, a->width - i), vec_load(sums + i) * scale);
}

/* ---- dq ---- */

static void keys_pack(const job *j, int64_t image, int64_t head, int64_t first) {
    const cpu_attention *a = j->a;
    bf16 *packed = j->packed + head * PACKS * j->size.packed;
    tokens k = tokens_of(a, a->k, a->k_type, a->tk, image, head), v = tokens_of(a, a->v, a->v_type, a->tk, image, head);
    pack_columns(&k, first, packed);
    pack_columns(&v, first, packed + j->size.packed);
    pack_rows(&k, first, packed + 2 * j->size.packed);
}

static void queries_run(const job *j, int64_t image, int64_t head, int64_t query, void *own) {
    const cpu_attention *a = j->a;
    const bf16 *packed = j->packed + head * PACKS * j->size.packed;
    const float *lse = j->lse + head * j->size.queries + query, *delta = j->delta + head * j->size.queries + query;
    workspace *w = own;
    float *sums = (float *)(w + 1);
    bf16 *left = (bf16 *)(void *)(sums + j->size.sums), *left_dout = left + j->size.left;
    int64_t rows = least(a->tq - query, ROWS), steps = width_steps(a);
    int row_tiles = rows > SIDE ? 2 : 1;
    tokens q = tokens_of(a, a->q, a->q_type, a->tq, image, head), dout = tokens_of(a, a->dout, a->dout_type, a->tq, image, head);
    pack_left(&q, query, left);
    pack_left(&dout, query, left_dout);
    const bf16_left queries = {left, j->offsets, STEP, true}, douts = {left_dout, j->offsets, STEP, true},
                    ds = {w->ds, j->offsets, STEP, true};
    for (int64_t key = 0; key < a->tk; key += OTHERS) {
        score_block(row_tiles, &queries, steps, packed, key, w->scores, NULL);
        score_block(row_tiles, &douts, steps, packed + j->size.packed, key, w->slopes, NULL);
        weights_update(a, w, true, query, key, lse, delta);
        sum_block(row_tiles, &ds, packed + 2 * j->size.packed, key, a->tk, a->width, sums, key > 0, NULL);
    }
    rows_store(a, sums, a->scale, a->dq, a->dq_type, ((image * a->tq + query) * a->heads + head) * a->width, rows);
}

/* ---- dk, dv ---- */

static void queries_pack(const job *j, int64_t image, int64_t head, int64_t first) {
    const cpu_attention *a = j->a;
    bf16 *packed = j->packed + head * PACKS * j->size.packed;
    tokens q = tokens_of(a, a->q, a->q_type, a->tq, image, head), dout = tokens_of(a, a->dout, a->dout_type, a->tq, image, head);
    pack_columns(&q, first, packed);
    pack_columns(&dout, first, packed + j->size.packed);
    pack_rows(&q, first, packed + 2 * j->size.packed);
    pack_rows(&dout, first, packed + 3 * j->size.packed);
}

static void keys_run(const job *j, int64_t image, int64_t head, int64_t key, void *own) {
    const cpu_attention *a = j->a;
    const bf16 *packed = j->packed + head * PACKS * j->size.packed;
    const float *lse = j->lse + head * j->size.queries, *delta = j->delta + head * j->size.queries;
    workspace *w = own;
    float *sums = (float *)(w + 1), *sums_v = sums + j->size.sums;
    bf16 *left = (bf16 *)(void *)(sums_v + j->size.sums), *left_v = left + j->size.left;
    int64_t rows = least(a->tk - key, ROWS), steps = width_steps(a);
    int row_tiles = rows > SIDE ? 2 : 1;
    tokens k = tokens_of(a, a->k, a->k_type, a->tk, image, head), v = tokens_of(a, a->v, a->v_type, a->tk, image, head);
    pack_left(&k, key, left);
    pack_left(&v, key, left_v);
    const bf16_left keys = {left, j->offsets, STEP, true}, values = {left_v, j->offsets, STEP, true};
    const bf16_left ds = {w->ds, j->offsets, STEP, true}, p = {w->p, j->offsets, STEP, true};
    for (int64_t query = 0; query < a->tq; query += OTHERS) {
        score_block(row_tiles, &keys, steps, packed, query, w->scores, NULL);
        score_block(row_tiles, &values, steps, packed + j->size.packed, query, w->slopes, NULL);
        weights_update(a, w, false, key, query, lse + query, delta + query);
        sum_block(row_tiles, &ds, packed + 2 * j->size.packed, query, a->tq, a->width, sums, query > 0, NULL);
        sum_block(row_tiles, &p, packed + 3 * j->size.packed, query, a->tq, a->width, sums_v, query > 0, NULL);
    }
    int64_t at = ((image * a->tk + key) * a->heads + head) * a->width;
    rows_store(a, sums, a->scale, a->dk, a->dk_type, at, rows);
    rows_store(a, sums_v, 1, a->dv, a->dv_type, at, rows);
}

size_t bf16_attention_grad_scratch(const cpu_attention *a, int threads) {
    sizes size = sizes_of(a);
    return size.shared + (size_t)threads * size.own;
}

void bf16_attention_grad_run(const cpu_attention *a, int threads, void *scratch) {
    job j = job_of(a, scratch);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        void *own = (char *)scratch + j.size.shared + (size_t)omp_get_thread_num() * j.size.own;
        memset(own, 0, sizeof(workspace));
        bf16_begin();
        for (int64_t image = 0; image < a->images; image++) {
#pragma omp for collapse(2) schedule(static) nowait
            for (int64_t head = 0; head < a->heads; head++)
                for (int64_t query = 0; query < a->tq; query += OTHERS) rows_prepare(&j, image, head, query);
#pragma omp for collapse(2) schedule(static)
            for (int64_t head = 0; head < a->heads; head++)
                for (int64_t key = 0; key < a->tk; key += OTHERS) keys_pack(&j, image, head, key);
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t head = 0; head < a->heads; head++)
                for (int64_t query = 0; query < a->tq; query += ROWS) queries_run(&j, image, head, query, own);
#pragma omp for collapse(2) schedule(static)
            for (int64_t head = 0; head < a->heads; head++)
                for (int64_t query = 0; query < a->tq; query += OTHERS) queries_pack(&j, image, head, query);
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t head = 0; head < a->heads; head++)
                for (int64_t key = 0; key < a->tk; key += ROWS) keys_run(&j, image, head, key, own);
        }
        bf16_end();
    }
}
