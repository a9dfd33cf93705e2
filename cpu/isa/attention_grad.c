/* Attention, backward: with P = exp(scale Q K^T - lse) and delta = rowsum(dO * O),
   dV = P^T dO, dS = P * (dO V^T - delta), dQ = scale dS K, dK = scale dS^T Q.

   Lanes are keys: scores, dV^T and dK^T have the head's width along rows, where any width fits, and only dQ has it along lanes. lse and
   delta are then one number per row. Each of the five products is made once.

   A task is a span of queries against a span of keys of one head. Where a head has several spans, each writes its own partial sums, and
   these are added in order afterwards; the number of spans depends on the shape alone, so the result does not depend on the threads. */
#include "cpu/isa/attention.h"

#include <omp.h>

/* Queries and keys of a block; its P and dS are rows of KEYS and a cache line more, an odd number of lines. */
enum { QUERIES = 64 / TILE_ROWS * TILE_ROWS, KEYS = 64, ROW = KEYS + 16 };
/* Tasks to aim at; floats of K in the part of a span that stays in the L2 cache together with its gradients. */
enum { TASKS = 32, PART_FLOATS = 20480, MOST_PART = 1024 };
static const float LOG2_E = 1.44269504f;

typedef struct plan {
    int64_t part;                   /* keys that stay in the cache at a time */
    int64_t key_spans, query_spans; /* of a head */
    int64_t key_span, query_span;   /* tokens of one */
    int64_t partial_dq, partial_dk; /* floats of one span's partial sums for all heads: dq; dk, and dv likewise */
    int64_t partials;               /* floats of all of them */
} plan;

static plan make_plan(const cpu_attention *a) {
    int64_t heads = a->images * a->heads;
    plan p = {.part = least(MOST_PART, round_up(PART_FLOATS / a->width + 1, KEYS)),
              .partial_dq = heads * a->tq * a->width,
              .partial_dk = heads * a->tk * a->width};
    p.part = least(p.part, round_up(a->tk, KEYS));
    int64_t wanted = (TASKS + heads - 1) / heads, most_keys = (a->tk + p.part - 1) / p.part, most_queries = (a->tq + QUERIES - 1) / QUERIES;
    int64_t cheapest = INT64_MAX;
    for (int64_t k = 1; k <= wanted && k <= most_keys; k++) {
        int64_t q = least((wanted + k - 1) / k, most_queries);
        int64_t missing = wanted > k * q ? wanted - k * q : 0; /* dearer than any memory */
        int64_t cost = (k > 1 ? k * a->tq : 0) + (q > 1 ? 2 * q * a->tk : 0) + missing * TASKS * (a->tq + 2 * a->tk);
        if (cost < cheapest) cheapest = cost, p.key_spans = k, p.query_spans = q;
    }
    p.key_span = round_up((a->tk + p.key_spans - 1) / p.key_spans, p.part);
    p.query_span = round_up((a->tq + p.query_spans - 1) / p.query_spans, QUERIES);
    p.key_spans = (a->tk + p.key_span - 1) / p.key_span;
    p.query_spans = (a->tq + p.query_span - 1) / p.query_span;
    p.partials =
        round_up((p.key_spans > 1 ? p.key_spans * p.partial_dq : 0) + (p.query_spans > 1 ? 2 * p.query_spans * p.partial_dk : 0), 16);
    return p;
}

/* A thread's memory. Rows and panels as in attention.h. */
typedef struct work {
    float *k, *kt, *vt, *dkt, *dvt; /* a part of the keys: rows, and panels */
    float *q, *dout, *dq;           /* a block of queries: rows */
    float *p, *ds;                  /* [QUERIES, ROW] */
    float *lse, *delta;             /* [QUERIES] */
} work;

/* Divides memory up; its size in floats. */
static int64_t work_divide(work *w, const cpu_attention *a, const plan *p, float *memory) {
    int64_t panels = p->part * a->width, rows = row_stride(a->width);
    struct {
        float **place;
        int64_t floats;
    } all[] = {{&w->k, p->part * rows}, {&w->kt, panels},        {&w->vt, panels},           {&w->dkt, panels},
               {&w->dvt, panels},       {&w->q, QUERIES * rows}, {&w->dout, QUERIES * rows}, {&w->dq, QUERIES * rows},
               {&w->p, QUERIES * ROW},  {&w->ds, QUERIES * ROW}, {&w->lse, QUERIES},         {&w->delta, QUERIES}};
    int64_t at = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (memory) *all[i].place = memory + at;
        at += round_up(all[i].floats, 16);
    }
    return at;
}

size_t isa_attention_grad_scratch(const cpu_attention *a, int threads) {
    plan p = make_plan(a);
    work w;
    return (size_t)(p.partials + work_divide(&w, a, &p, NULL) * threads) * sizeof(float);
}

/* ---- tiles ---- */

INLINE void clear(vec sum[TILE_ROWS][MOST_VECTORS], const int vectors) {
    UNROLL for (int i = 0; i < TILE_ROWS; i++) { UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = vec_splat(0); }
}

/* p [TILE_ROWS, vectors] = exp(scale * q k^T - lse): the difference is taken before the change to base 2, or large scores would lose
 * digits. */
INLINE void probabilities_tile(const int vectors, int64_t width, float scale, const float *q, const float *kt, const float *lse, float *p) {
    vec sum[TILE_ROWS][MOST_VECTORS];
    clear(sum, vectors);
    tile_sum(sum, TILE_ROWS, vectors, false, width, q, row_stride(width), kt, LANES, width * LANES);
    UNROLL for (int i = 0; i < TILE_ROWS; i++) {
        UNROLL for (int j = 0; j < vectors; j++) vec_store(p + i * ROW + j * LANES, vec_exp2((sum[i][j] * scale - lse[i]) * LOG2_E));
    }
}

/* ds [TILE_ROWS, vectors] = p * (dout v^T - delta) */
INLINE void score_grads_tile(const int vectors, int64_t width, const float *dout, const float *vt, const float *delta, const float *p,
                             float *ds) {
    vec sum[TILE_ROWS][MOST_VECTORS];
    clear(sum, vectors);
    tile_sum(sum, TILE_ROWS, vectors, false, width, dout, row_stride(width), vt, LANES, width * LANES);
    UNROLL for (int i = 0; i < TILE_ROWS; i++) {
        UNROLL for (int j = 0; j < vectors; j++)
            vec_store(ds + i * ROW + j * LANES, vec_load(p + i * ROW + j * LANES) * (sum[i][j] - delta[i]));
    }
}

/* c [rows, vectors] += A B as in tile_sum, where vector j of row i of c is at c + i * ldc + j * c_vector. */
INLINE void add_tile(const int rows, const int vectors, const bool transposed, int64_t k, const float *a, int64_t lda, const float *b,
                     int64_t ldb, float *c, int64_t ldc, int64_t c_vector) {
    vec sum[TILE_ROWS][MOST_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) { UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = vec_load(c + i * ldc + j * c_vector); }
    tile_sum(sum, rows, vectors, transposed, k, a, lda, b, ldb, LANES);
    UNROLL for (int i = 0; i < rows; i++) { UNROLL for (int j = 0; j < vectors; j++) vec_store(c + i * ldc + j * c_vector, sum[i][j]); }
}

/* ---- one block of queries against one block of keys ---- */

#if defined(__AVX512F__)
#define EACH_ROWS(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#define BY_VECTORS(n, CALL) \
    if (n == 2) \
        CALL(2); \
    else if (n == 3) \
        CALL(3); \
    else \
        CALL(1)
#else
#define EACH_ROWS(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#define BY_VECTORS(n, CALL) \
    if (n == 2) \
        CALL(2); \
    else \
        CALL(1)
#endif

typedef struct block {
    int64_t width, queries, keys; /* that there are */
    int64_t key;                  /* the first, within the part */
} block;

static int64_t block_vectors(const block *b) { return (b->keys + LANES - 1) / LANES; }

static void probabilities(const work *w, const block *b, float scale) {
    for (int64_t j = 0, n; j < block_vectors(b); j += n) {
        n = next_vectors(block_vectors(b) - j);
        for (int64_t i = 0; i < b->queries; i += TILE_ROWS) {
#define CALL(v) \
    probabilities_tile(v, b->width, scale, w->q + i * row_stride(b->width), w->kt + (b->key + j * LANES) * b->width, w->lse + i, \
                       w->p + i * ROW + j * LANES)
            BY_VECTORS(n, CALL);
#undef CALL
        }
    }
}

static void score_grads(const work *w, const block *b) {
    for (int64_t j = 0, n; j < block_vectors(b); j += n) {
        n = next_vectors(block_vectors(b) - j);
        for (int64_t i = 0; i < b->queries; i += TILE_ROWS) {
#define CALL(v) \
    score_grads_tile(v, b->width, w->dout + i * row_stride(b->width), w->vt + (b->key + j * LANES) * b->width, w->delta + i, \
                     w->p + i * ROW + j * LANES, w->ds + i * ROW + j * LANES)
            BY_VECTORS(n, CALL);
#undef CALL
        }
    }
}

/* sums (panels of the part) += rows^T weights: dv from dout and P, dk from q and dS. */
static void key_sums(const block *b, const float *rows, const float *weights, float *sums) {
    int64_t stride = row_stride(b->width);
    for (int64_t j = 0, n; j < block_vectors(b); j += n) {
        n = next_vectors(block_vectors(b) - j);
        float *c = sums + (b->key + j * LANES) * b->width;
        int64_t i = 0;
#define CALL(v) add_tile(TILE_ROWS, v, true, b->queries, rows + i, stride, weights + j * LANES, ROW, c + i * LANES, LANES, b->width * LANES)
        for (; i + TILE_ROWS <= b->width; i += TILE_ROWS) BY_VECTORS(n, CALL);
#undef CALL
#define CASE(r) \
    if (b->width - i == r) { \
        for (int v = 0; v < n; v++) \
            add_tile(r, 1, true, b->queries, rows + i, stride, weights + (j + v) * LANES, ROW, c + i * LANES + v * b->width * LANES, \
                     LANES, 0); \
    }
        EACH_ROWS(CASE)
#undef CASE
    }
}

/* dq += dS K */
static void query_sums(const work *w, const block *b) {
    int64_t stride = row_stride(b->width), vectors = (b->width + LANES - 1) / LANES;
    for (int64_t j = 0, n; j < vectors; j += n) {
        n = next_vectors(vectors - j);
        for (int64_t i = 0; i < b->queries; i += TILE_ROWS) {
#define CALL(v) \
    add_tile(TILE_ROWS, v, false, b->keys, w->ds + i * ROW, ROW, w->k + b->key * stride + j * LANES, stride, \
             w->dq + i * stride + j * LANES, stride, LANES)
            BY_VECTORS(n, CALL);
#undef CALL
        }
    }
}

/* Key j is shown to query i where j <= i + ahead. */
static void hide_later_keys(const work *w, const block *b, int64_t ahead) {
    for (int64_t i = 0; i < b->queries; i++)
        for (int64_t j = i + ahead + 1 > 0 ? i + ahead + 1 : 0; j < b->keys; j++) w->p[i * ROW + j] = 0;
}

/* ---- tasks ---- */

/* Where a head's tokens are, and where the results of a task go: the tensors themselves, or partial sums. */
typedef struct head {
    const float *q, *k, *v, *o, *dout, *lse;
    float *dq, *dk, *dv;
    int64_t ld, ld_dq, ld_dk; /* floats between tokens: inputs; results */
} head;

static head head_open(const cpu_attention *a, const plan *p, int64_t index, int64_t key_span, int64_t query_span, float *partials) {
    int64_t n = index / a->heads, h = index % a->heads, ld = a->heads * a->width;
    int64_t q = n * a->tq * ld + h * a->width, k = n * a->tk * ld + h * a->width;
    head x = {(const float *)a->q + q,
              (const float *)a->k + k,
              (const float *)a->v + k,
              (const float *)a->o + q,
              (const float *)a->dout + q,
              a->lse + index * a->tq,
              (float *)a->dq + q,
              (float *)a->dk + k,
              (float *)a->dv + k,
              ld,
              ld,
              ld};
    if (p->key_spans > 1) {
        x.dq = partials + key_span * p->partial_dq + index * a->tq * a->width;
        x.ld_dq = a->width;
        partials += p->key_spans * p->partial_dq;
    }
    if (p->query_spans > 1) {
        x.dk = partials + 2 * query_span * p->partial_dk + index * a->tk * a->width;
        x.dv = x.dk + p->partial_dk;
        x.ld_dk = a->width;
    }
    return x;
}

static float row_dot(const float *a, const float *b, int64_t n) {
    vec sum = vec_splat(0);
    float total = 0;
    for (int64_t i = 0; i < n; i += LANES) sum += vec_load_first(a + i, n - i) * vec_load_first(b + i, n - i);
    for (int i = 0; i < LANES; i++) total += sum[i];
    return total;
}

/* `count` queries from `first` on; the rows up to a whole tile are zeros. */
static void queries_load(const work *w, const cpu_attention *a, const head *x, int64_t first, int64_t count) {
    int64_t stride = row_stride(a->width), rows = round_up(count, TILE_ROWS);
    copy_rows(w->q, x->q + first * x->ld, x->ld, count, a->width);
    copy_rows(w->dout, x->dout + first * x->ld, x->ld, count, a->width);
    memset(w->q + count * stride, 0, (size_t)((rows - count) * stride) * sizeof(float));
    memset(w->dout + count * stride, 0, (size_t)((rows - count) * stride) * sizeof(float));
    memset(w->dq, 0, (size_t)(rows * stride) * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
        w->lse[i] = i < count ? x->lse[first + i] : 0;
        w->delta[i] = i < count ? row_dot(x->o + (first + i) * x->ld, x->dout + (first + i) * x->ld, a->width) : 0;
    }
}

/* dq = scale * sums, or += behind the first part of a span of keys. */
static void queries_write(const work *w, const cpu_attention *a, const head *x, int64_t first, int64_t count, bool add) {
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < a->width; i += LANES) {
            float *to = x->dq + (first + t) * x->ld_dq + i;
            vec v = vec_load(w->dq + t * row_stride(a->width) + i) * a->scale;
            vec_store_first(to, add ? vec_load_first(to, a->width - i) + v : v, a->width - i);
        }
}

/* The keys from `key` to `key_end`, of which a part, against the queries of a span. */
static void part_run(const work *w, const cpu_attention *a, const head *x, int64_t key, int64_t keys, int64_t query, int64_t query_end,
                     bool add) {
    int64_t width = a->width, padded = round_up(keys, LANES) * width;
    copy_rows(w->k, x->k + key * x->ld, x->ld, keys, width);
    copy_to_panels(w->kt, x->k + key * x->ld, x->ld, keys, width, 1);
    copy_to_panels(w->vt, x->v + key * x->ld, x->ld, keys, width, 1);
    memset(w->dkt, 0, (size_t)padded * sizeof(float));
    memset(w->dvt, 0, (size_t)padded * sizeof(float));
    for (int64_t first = query; first < query_end; first += QUERIES) {
        int64_t count = least(QUERIES, query_end - first);
        queries_load(w, a, x, first, count);
        for (int64_t at = 0; at < keys; at += KEYS) {
            if (a->causal && key + at > first + count - 1) break;
            block b = {width, count, least(KEYS, keys - at), at};
            probabilities(w, &b, a->scale);
            if (a->causal) hide_later_keys(w, &b, first - key - at);
            score_grads(w, &b);
            key_sums(&b, w->dout, w->p, w->dvt);
            key_sums(&b, w->q, w->ds, w->dkt);
            query_sums(w, &b);
        }
        queries_write(w, a, x, first, count, add);
    }
    for (int64_t t = 0; t < keys; t += LANES) {
        copy_from_panel(x->dk + (key + t) * x->ld_dk, x->ld_dk, w->dkt + t * width, keys - t, width, vec_splat(a->scale));
        copy_from_panel(x->dv + (key + t) * x->ld_dk, x->ld_dk, w->dvt + t * width, keys - t, width, vec_splat(1));
    }
}

static void task_run(const cpu_attention *a, const plan *p, int64_t task, float *partials, const work *w) {
    int64_t spans = p->key_spans * p->query_spans, key_span = task % spans / p->query_spans, query_span = task % p->query_spans;
    head x = head_open(a, p, task / spans, key_span, query_span, partials);
    int64_t first = key_span * p->key_span, end = least(first + p->key_span, a->tk), query = query_span * p->query_span;
    for (int64_t key = first; key < end; key += p->part)
        part_run(w, a, &x, key, least(p->part, end - key), query, least(query + p->query_span, a->tq), key > first);
}

/* out [images, tokens, heads, width] = the sum of `spans` partial results [images, heads, tokens, width], `step` floats apart; for one
   token of all heads. */
static void token_reduce(const cpu_attention *a, float *out, int64_t token, int64_t tokens, const float *partial, int64_t spans,
                         int64_t step) {
    int64_t n = token / tokens, t = token % tokens;
    for (int64_t h = 0; h < a->heads; h++) {
        const float *from = partial + ((n * a->heads + h) * tokens + t) * a->width;
        float *to = out + (token * a->heads + h) * a->width;
        for (int64_t i = 0; i < a->width; i += LANES) {
            vec sum = vec_load_first(from + i, a->width - i);
            for (int64_t s = 1; s < spans; s++) sum += vec_load_first(from + s * step + i, a->width - i);
            vec_store_first(to + i, sum, a->width - i);
        }
    }
}

void isa_attention_grad_run(const cpu_attention *a, int threads, void *scratch) {
    plan p = make_plan(a);
    work sizes;
    int64_t floats = work_divide(&sizes, a, &p, NULL), tasks = a->images * a->heads * p.key_spans * p.query_spans;
    float *partials = scratch, *partial_dk = partials + (p.key_spans > 1 ? p.key_spans * p.partial_dq : 0);
#pragma omp parallel num_threads(threads) if (tasks > 1 && threads > 1)
    {
        work w;
        work_divide(&w, a, &p, partials + p.partials + omp_get_thread_num() * floats);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) task_run(a, &p, task, partials, &w);
        if (p.key_spans > 1) {
#pragma omp for
            for (int64_t t = 0; t < a->images * a->tq; t++) token_reduce(a, a->dq, t, a->tq, partials, p.key_spans, p.partial_dq);
        }
        if (p.query_spans > 1) {
#pragma omp for
            for (int64_t t = 0; t < a->images * a->tk; t++) {
                token_reduce(a, a->dk, t, a->tk, partial_dk, p.query_spans, 2 * p.partial_dk);
                token_reduce(a, a->dv, t, a->tk, partial_dk + p.partial_dk, p.query_spans, 2 * p.partial_dk);
            }
        }
    }
}
