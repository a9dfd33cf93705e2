/* Scaled dot-product attention by heads, and its gradient, without ever holding the score matrix.

   forward   S = q k^T / sqrt(d), lse = log sum exp(S) per row, o = exp(S - lse) v
   backward  P = exp(S - lse), delta = rowsum(do * o), dv = P^T do, dS = P * (do v^T - delta) / sqrt(d), dq = dS k, dk = dS^T q

   (Dao et al., FlashAttention, 2022; Rabe & Staats 2021.) BLAS takes a block of queries against all keys, Vulkan and own
   CPU kernels blocks of both. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <string.h>

enum { IN_Q, IN_K, IN_V, INPUTS };
enum { I_IMAGES, I_TQ, I_TK, I_HEADS, I_WIDTH /* of a head */, I_CAUSAL };

/* Queries per block on the CPU. */
enum { BLOCK = 64 };

static const op ATTENTION, ATTENTION_GRAD;

static int64_t tokens(const tensor *x) { return x->dim[0] ? tensor_rows(x) / x->dim[0] : 0; }

tensor *op_attention(tape *t, tensor *q, tensor *k, tensor *v, int heads, bool causal) {
    if (!q || !k || !v) return NULL;
    char qs[64], ks[64];
    int64_t c = tensor_columns(q);
    if (heads < 1 || c % heads || tensor_columns(k) != c || tensor_columns(v) != c || q->dim[0] != k->dim[0] ||
        tensor_rows(k) != tensor_rows(v))
        return tape_fail(t, "attention: %d heads, queries %s and keys %s do not fit", heads, tensor_shape_text(q, qs),
                         tensor_shape_text(k, ks));
    tensor *o = tape_temporary(t, DTYPE_COUNT, q->rank, q->dim);
    tensor *lse = tape_temporary(t, DTYPE_F32, 3, (int64_t[]){q->dim[0], heads, tokens(q)});
    record *r = tape_append(t, &ATTENTION, (tensor *[]){q, k, v}, INPUTS, (tensor *[]){o, lse}, 2);
    r->i[I_IMAGES] = q->dim[0], r->i[I_TQ] = tokens(q), r->i[I_TK] = tokens(k);
    r->i[I_HEADS] = heads, r->i[I_WIDTH] = c / heads, r->i[I_CAUSAL] = causal;
    r->f[0] = 1.0f / sqrtf((float)(c / heads));
    return o;
}

static void backward(tape *t, const record *r) {
    tensor *q = r->in[IN_Q], *k = r->in[IN_K], *v = r->in[IN_V];
    tensor *dq = tape_temporary(t, DTYPE_COUNT, q->rank, q->dim), *dk = tape_temporary(t, DTYPE_COUNT, k->rank, k->dim);
    tensor *dv = tape_temporary(t, DTYPE_COUNT, v->rank, v->dim);
    record *d = tape_append(t, &ATTENTION_GRAD, (tensor *[]){tape_get_grad(r->out[0]), q, k, v, r->out[0], r->out[1]}, 6,
                            (tensor *[]){dq, dk, dv}, 3);
    memcpy(d->i, r->i, sizeof r->i);
    d->f[0] = r->f[0];
    grad_add(t, q, dq);
    grad_add(t, k, dk);
    grad_add(t, v, dv);
}

static double products(const record *r) {
    return 2.0 * (double)(r->i[I_IMAGES] * r->i[I_TQ]) * (double)(r->i[I_TK] * r->i[I_HEADS] * r->i[I_WIDTH]);
}
static double forward_flops(const record *r) { return 2 * products(r); }
static double grad_flops(const record *r) { return 5 * products(r); }

/* ---- CPU: own kernels ---- */

static cpu_attention shape_call(const record *r, const device *d) {
    return (cpu_attention){.images = r->i[I_IMAGES],
                           .heads = r->i[I_HEADS],
                           .tq = r->i[I_TQ],
                           .tk = r->i[I_TK],
                           .width = r->i[I_WIDTH],
                           .causal = r->i[I_CAUSAL] != 0,
                           .scale = r->f[0],
                           .bf16 = d->bf16};
}

static narrowing forward_narrow(const record *r, const device *d) {
    (void)r;
    return d->kernels ? (narrowing){.in = 1u << IN_Q | 1u << IN_K | 1u << IN_V, .out = 1} : (narrowing){0};
}
/* All but lse: delta is the sum of products of rounded numbers too. */
static narrowing grad_narrow(const record *r, const device *d) {
    (void)r;
    return d->kernels ? (narrowing){.in = 0x1f, .out = 7} : (narrowing){0};
}

/* Flops of one call below which waking threads costs more than they save. */
static const double SMALL_CALL = 1 << 23;

static int call_threads(const device *d, double flops) { return flops > SMALL_CALL ? d->threads : 1; }

static void forward_kernels(const record *r, const device *d) {
    cpu_attention a = shape_call(r, d);
    a.q = r->in[IN_Q]->cpu, a.k = r->in[IN_K]->cpu, a.v = r->in[IN_V]->cpu;
    a.o = r->out[0]->cpu, a.lse = r->out[1]->cpu;
    a.q_type = r->in[IN_Q]->type, a.k_type = r->in[IN_K]->type, a.v_type = r->in[IN_V]->type, a.o_type = r->out[0]->type;
    d->kernels->attention(&a, call_threads(d, forward_flops(r)), r->scratch->cpu);
}

static void grad_kernels(const record *r, const device *d) {
    cpu_attention a = shape_call(r, d);
    a.dout = r->in[0]->cpu, a.q = r->in[1]->cpu, a.k = r->in[2]->cpu, a.v = r->in[3]->cpu;
    a.o = r->in[4]->cpu, a.lse = r->in[5]->cpu; /* read only */
    a.dq = r->out[0]->cpu, a.dk = r->out[1]->cpu, a.dv = r->out[2]->cpu;
    a.dout_type = r->in[0]->type, a.q_type = r->in[1]->type, a.k_type = r->in[2]->type, a.v_type = r->in[3]->type;
    a.o_type = r->in[4]->type;
    a.dq_type = r->out[0]->type, a.dk_type = r->out[1]->type, a.dv_type = r->out[2]->type;
    d->kernels->attention_grad(&a, call_threads(d, grad_flops(r)), r->scratch->cpu);
}

/* ---- CPU: BLAS ---- */

static size_t grad_bytes(const record *r, const gpu *on);
static size_t blas_scratch(const record *r, const device *d) { return (size_t)(d->threads * BLOCK * r->i[I_TK]) * sizeof(float); }

static size_t forward_scratch(const record *r, const device *d) {
    if (d->gpu) return 0;
    if (!d->kernels) return blas_scratch(r, d);
    cpu_attention a = shape_call(r, d);
    return d->kernels->attention_scratch(&a, call_threads(d, forward_flops(r)));
}
static size_t grad_scratch(const record *r, const device *d) {
    if (d->gpu) return grad_bytes(r, d->gpu);
    if (!d->kernels) return 2 * blas_scratch(r, d);
    cpu_attention a = shape_call(r, d);
    return d->kernels->attention_grad_scratch(&a, call_threads(d, grad_flops(r)));
}

/* Keys that query i sees. */
static int64_t visible(const record *r, int64_t query) { return r->i[I_CAUSAL] && query + 1 < r->i[I_TK] ? query + 1 : r->i[I_TK]; }

OP_HOT static float row_max(const float *s, int64_t n) {
    float most = -FLT_MAX;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++) most = s[j] > most ? s[j] : most;
    return most;
}

OP_HOT static float row_exp(float *s, int64_t n, float shift) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        s[j] = scalar_exp(s[j] - shift);
        sum += s[j];
    }
    return sum;
}

/* Scores of `count` queries from `first` on: [count, tk] */
static void scores(const record *r, const float *q, const float *k, int64_t first, int64_t count, float *s) {
    int64_t ld = r->i[I_HEADS] * r->i[I_WIDTH];
    blas_gemm(false, true, count, r->i[I_TK], r->i[I_WIDTH], r->f[0], q + first * ld, ld, k, ld, 0, s, r->i[I_TK]);
}

static void forward_blas(const record *r, const device *d) {
    int64_t tq = r->i[I_TQ], tk = r->i[I_TK], heads = r->i[I_HEADS], width = r->i[I_WIDTH], ld = heads * width,
            blocks = (tq + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(dynamic) \
    num_threads(d->threads) if (forward_flops(r) > OP_SMALL) /* each has its part of the scratch memory */
    for (int64_t job = 0; job < r->i[I_IMAGES] * heads * blocks; job++) {
        int64_t n = job / blocks / heads, h = job / blocks % heads, first = job % blocks * BLOCK,
                count = tq - first < BLOCK ? tq - first : BLOCK;
        const float *q = (const float *)r->in[IN_Q]->cpu + n * tq * ld + h * width,
                    *k = (const float *)r->in[IN_K]->cpu + n * tk * ld + h * width;
        const float *v = (const float *)r->in[IN_V]->cpu + n * tk * ld + h * width;
        float *o = (float *)r->out[0]->cpu + (n * tq + first) * ld + h * width,
              *lse = (float *)r->out[1]->cpu + (n * heads + h) * tq + first;
        float *s = (float *)r->scratch->cpu + omp_get_thread_num() * BLOCK * tk;
        scores(r, q, k, first, count, s);
        for (int64_t i = 0; i < count; i++) {
            int64_t keys = visible(r, first + i);
            float *row = s + i * tk, most = row_max(row, keys), sum = row_exp(row, keys, most), scale = 1.0f / sum;
            for (int64_t j = 0; j < keys; j++) row[j] *= scale;
            for (int64_t j = keys; j < tk; j++) row[j] = 0;
            lse[i] = most + logf(sum);
        }
        blas_gemm(false, false, count, width, tk, 1, s, tk, v, ld, 0, o, ld);
    }
}

OP_HOT static float row_dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += a[j] * b[j];
    return sum;
}

OP_HOT static void row_score_grad(const float *p, float *dp, int64_t n, float delta, float scale) {
    for (int64_t j = 0; j < n; j++) dp[j] = p[j] * (dp[j] - delta) * scale;
}

static void grad_blas(const record *r, const device *d) {
    int64_t tq = r->i[I_TQ], tk = r->i[I_TK], heads = r->i[I_HEADS], width = r->i[I_WIDTH], ld = heads * width;
#pragma omp parallel for schedule(dynamic) num_threads(d->threads) if (grad_flops(r) > OP_SMALL)
    for (int64_t job = 0; job < r->i[I_IMAGES] * heads; job++) {
        int64_t n = job / heads, h = job % heads, qs = n * tq * ld + h * width, ks = n * tk * ld + h * width;
        const float *dy = (const float *)r->in[0]->cpu + qs, *q = (const float *)r->in[1]->cpu + qs, *k = (const float *)r->in[2]->cpu + ks;
        const float *v = (const float *)r->in[3]->cpu + ks, *o = (const float *)r->in[4]->cpu + qs;
        const float *lse = (const float *)r->in[5]->cpu + (n * heads + h) * tq;
        float *dq = (float *)r->out[0]->cpu + qs, *dk = (float *)r->out[1]->cpu + ks, *dv = (float *)r->out[2]->cpu + ks;
        float *p = (float *)r->scratch->cpu + omp_get_thread_num() * 2 * BLOCK * tk, *dp = p + BLOCK * tk;
        for (int64_t first = 0; first < tq; first += BLOCK) {
            int64_t count = tq - first < BLOCK ? tq - first : BLOCK;
            float beta = first ? 1.0f : 0.0f;
            scores(r, q, k, first, count, p);
            blas_gemm(false, true, count, tk, width, 1, dy + first * ld, ld, v, ld, 0, dp, tk);
            for (int64_t i = 0; i < count; i++) {
                int64_t keys = visible(r, first + i);
                row_exp(p + i * tk, keys, lse[first + i]);
                for (int64_t j = keys; j < tk; j++) p[i * tk + j] = 0;
            }
            blas_gemm(true, false, tk, width, count, 1, p, tk, dy + first * ld, ld, beta, dv, ld);
            for (int64_t i = 0; i < count; i++)
                row_score_grad(p + i * tk, dp + i * tk, tk, row_dot(dy + (first + i) * ld, o + (first + i) * ld, width), r->f[0]);
            blas_gemm(false, false, count, width, tk, 1, dp, tk, k, ld, 0, dq + first * ld, ld);
            blas_gemm(true, false, tk, width, count, 1, dp, tk, q + first * ld, ld, beta, dk, ld);
        }
    }
}

static void forward_cpu(const record *r, const device *d) {
    if (d->kernels)
        forward_kernels(r, d);
    else
        forward_blas(r, d);
}

static void grad_cpu(const record *r, const device *d) {
    if (d->kernels)
        grad_kernels(r, d);
    else
        grad_blas(r, d);
}

/* ---- Vulkan ---- */

/* Heads wider than this pass through shared memory in chunks. */
enum { MOST_PLACES = 40 };

typedef struct blocks {
    int64_t places, chunks; /* of a head in shared memory at a time */
    int64_t rows, columns;  /* queries and keys per block */
} blocks;

/* The sums of a block of rows stay in registers: `most` of them per thread. */
static blocks choose_blocks(const record *r, int64_t most) {
    int64_t width = r->i[I_WIDTH], chunks = kernel_groups(width, MOST_PLACES);
    blocks b = {(kernel_groups(width, chunks) + 7) / 8 * 8, chunks, 32, 32};
    while (b.rows > 8 && b.rows / 8 * (b.places / 8) * chunks > most) b.rows /= 2;
    return b;
}

static void push_shape(kernel_call *k, const record *r) {
    kernel_push(k, r->i[I_TQ]);
    kernel_push(k, r->i[I_TK]);
    kernel_push(k, r->i[I_HEADS]);
    kernel_push_float(k, r->f[0]);
}

static void shape_constants(kernel_call *k, const record *r, blocks b) {
    const int64_t constants[] = {r->i[I_WIDTH], b.places, b.chunks, b.rows, b.columns, r->i[I_CAUSAL], kernel_fours(r->i[I_WIDTH])};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(k, constants[i]);
    push_shape(k, r);
}

/* attention_half.comp: its threads hold a row of a head of that many places at most. */
enum { HALF_PLACES = 160, HALF_THREADS = 128, HALF_KEYS = 32 };

static bool fits_half(const record *r, const gpu_info *info) {
    bool half = r->out[0]->type == DTYPE_F16;
    for (int i = 0; i < INPUTS; i++) half = half && r->in[i]->type == DTYPE_F16;
    return half && info->shuffles && !info->small_kernels && !r->i[I_CAUSAL] && r->i[I_WIDTH] % 8 == 0 && r->i[I_WIDTH] <= HALF_PLACES;
}

static void bind_forward(kernel_call *k, const record *r) {
    for (int i = 0; i < INPUTS; i++) kernel_read(k, r->in[i]);
    kernel_write(k, r->out[0]);
    kernel_write(k, r->out[1]);
}

static void forward_half(const record *r, gpu_recording *rec, const gpu_info *info) {
    /* Shared memory has no room for four queries a thread and whole blocks of keys of a wide head. Conversions weigh more than barriers. */
    bool wide = r->i[I_WIDTH] > HALF_PLACES / 2;
    int64_t rows = wide && info->mixed_fma ? 2 : 4, keys = wide && !info->mixed_fma ? HALF_KEYS / 2 : HALF_KEYS;
    kernel_call k = kernel_named("attention_half");
    kernel_type(&k, r->out[0]);
    bind_forward(&k, r);
    const int64_t constants[] = {r->i[I_WIDTH], rows, keys, r->i[I_TK] % keys != 0, !info->mixed_fma};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(&k, constants[i]);
    push_shape(&k, r);
    k.subgroup = info->mixed_fma ? info->subgroup_least : 0;
    kernel_run(&k, rec, kernel_groups(r->i[I_TQ], rows * HALF_THREADS / 8), r->i[I_HEADS], r->i[I_IMAGES], forward_flops(r));
}

/* attention_matrix.comp: subgroups in a workgroup, each with one fragment of queries. */
enum { MATRIX_WAVES = 4 };

/* Its shared memory: K, V transposed and a strip of scores per subgroup, in chunks of 16 bytes. */
static int64_t matrix_shared_bytes(const record *r, const gpu_info *info) {
    int64_t fragment = info->matrix_size, places = kernel_groups(r->i[I_WIDTH], fragment) * fragment, row = places / 8 + 1;
    int64_t strip = fragment * (HALF_KEYS / 4 + 2) + fragment / 4;
    int64_t running = HALF_KEYS * row + places * (HALF_KEYS / 8 + 1) + MATRIX_WAVES * strip, queries = MATRIX_WAVES * fragment * row;
    return 16 * (running > queries ? running : queries);
}

static bool fits_matrix(const record *r, const gpu *on) {
    const gpu_info *info = gpu_get_info(on);
    return fits_half(r, info) && info->matrix_size && info->subgroup_least % info->matrix_size == 0 && gpu_has_shader("attention_matrix") &&
           matrix_shared_bytes(r, info) <= (int64_t)gpu_get_limits(on)->shared_bytes;
}

static void forward_matrix(const record *r, gpu_recording *rec, const gpu_info *info) {
    kernel_call k = kernel_named("attention_matrix");
    bind_forward(&k, r);
    const int64_t constants[] = {MATRIX_WAVES * info->subgroup_least, r->i[I_WIDTH],     HALF_KEYS,
                                 r->i[I_TK] % HALF_KEYS != 0,         info->matrix_size, info->subgroup_least};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(&k, constants[i]);
    push_shape(&k, r);
    k.subgroup = info->subgroup_least;
    kernel_run(&k, rec, kernel_groups(r->i[I_TQ], MATRIX_WAVES * info->matrix_size), r->i[I_HEADS], r->i[I_IMAGES], forward_flops(r));
}

static void forward_general(const record *r, gpu_recording *rec) {
    blocks b = choose_blocks(r, 80);
    kernel_call k = kernel_named("attention_forward");
    kernel_type(&k, r->in[IN_Q]);
    kernel_type(&k, r->in[IN_K]);
    kernel_type(&k, r->out[0]);
    bind_forward(&k, r);
    shape_constants(&k, r, b);
    kernel_run(&k, rec, kernel_groups(r->i[I_TQ], b.rows), r->i[I_HEADS], r->i[I_IMAGES], forward_flops(r));
}

static void forward_vulkan(const record *r, gpu_recording *rec) {
    const gpu *on = gpu_recording_device(rec);
    const gpu_info *info = gpu_get_info(on);
    if (fits_matrix(r, on))
        forward_matrix(r, rec, info);
    else if (fits_half(r, info))
        forward_half(r, rec, info);
    else
        forward_general(r, rec);
}

/* Kernels for graphics cards, in pairs: attention_half_keys.comp and attention_half_queries.comp (heads of a multiple of HALF_WIDTH
   places), attention_matrix_keys.comp and attention_matrix_queries.comp. A workgroup has a block of tokens, of HELD at most, and others
   pass. */
enum { BACKWARD_HELD = 64, BACKWARD_PASSING = 32, HALF_WIDTH = 40, MATRIX_COUPLES = 4 /* of subgroups */ };

static bool fits_large_backward(const record *r, const gpu_info *info) {
    bool half = true;
    for (int i = 0; i < 4; i++) half = half && r->in[i]->type == DTYPE_F16;
    for (int i = 0; i < 3; i++) half = half && r->out[i]->type == DTYPE_F16;
    return half && !info->small_kernels && !r->i[I_CAUSAL] && r->i[I_WIDTH] <= HALF_PLACES;
}
static bool fits_half_backward(const record *r, const gpu_info *info) {
    return fits_large_backward(r, info) && r->i[I_WIDTH] % HALF_WIDTH == 0;
}

/* Shared memory of attention_matrix_keys.comp, the larger of the two, in chunks of 16 bytes: tiles as they are in memory, transposed ones,
   strips of weights; before them a block of its own tokens, behind them results. */
static int64_t matrix_backward_bytes(const record *r, const gpu_info *info, int64_t passing) {
    int64_t fragment = info->matrix_size, places = kernel_groups(r->i[I_WIDTH], fragment) * fragment;
    int64_t row = places / 8 + 1, turned = passing / 8 + 1, begin = MATRIX_COUPLES * fragment * row;
    int64_t running = 2 * passing * row + 2 * places * turned + MATRIX_COUPLES * fragment * turned;
    int64_t end = 2 * MATRIX_COUPLES * fragment * (fragment / 4 + 1), most = running > begin ? running : begin;
    return 16 * (most > end ? most : end);
}

/* Tokens that pass at a time; 0: the kernels do not fit. */
static int64_t matrix_passing(const record *r, const gpu *on) {
    const gpu_info *info = gpu_get_info(on);
    if (!fits_large_backward(r, info) || r->i[I_WIDTH] % 8 || !info->matrix_size || !info->matrix_halfs ||
        info->subgroup_least % info->matrix_size ||
        2 * MATRIX_COUPLES * info->subgroup_least > (int64_t)gpu_get_limits(on)->group_threads || !gpu_has_shader("attention_matrix_keys"))
        return 0;
    int64_t most = 32768 < gpu_get_limits(on)->shared_bytes ? 32768 : (int64_t)gpu_get_limits(on)->shared_bytes;
    for (int64_t passing = BACKWARD_PASSING; passing > info->matrix_size; passing /= 2)
        if (matrix_backward_bytes(r, info, passing) <= most) return passing;
    bool even = kernel_groups(r->i[I_WIDTH], info->matrix_size) % 2 == 0; /* subgroups of a couple divide what there is */
    return even && matrix_backward_bytes(r, info, info->matrix_size) <= most ? info->matrix_size : 0;
}

/* Numbers for every query: delta, then log2(e) lse, [2][images, heads, pitch], of whole blocks where blocks are read at once. */
static int64_t rows_pitch(const record *r, const gpu *on) {
    int64_t tq = r->i[I_TQ];
    return matrix_passing(r, on) || fits_half_backward(r, gpu_get_info(on)) ? kernel_groups(tq, BACKWARD_HELD) * BACKWARD_HELD : tq;
}
static size_t rows_bytes(const record *r, const gpu *on) {
    return (size_t)(2 * r->i[I_IMAGES] * r->i[I_HEADS] * rows_pitch(r, on)) * sizeof(float);
}

/* Few keys make few workgroups. Then several share the queries of a block of keys, `share` each, and attention_join.comp adds up. Depends
   on sizes only, as sums should. */
static int64_t query_share(const record *r, int64_t held) {
    enum { ENOUGH_GROUPS = 128, LEAST_SHARE = 256 };
    int64_t groups = kernel_groups(r->i[I_TK], held) * r->i[I_HEADS] * r->i[I_IMAGES], tq = r->i[I_TQ];
    int64_t parts = kernel_groups(ENOUGH_GROUPS, groups), most = tq / LEAST_SHARE;
    if (parts > most) parts = most;
    return parts > 1 ? kernel_groups(kernel_groups(tq, parts), BACKWARD_PASSING) * BACKWARD_PASSING : tq;
}

/* Of the blocks of keys that the kernels for this device have; 0: general kernels. */
static int64_t held_keys(const record *r, const gpu *on) {
    const gpu_info *info = gpu_get_info(on);
    return matrix_passing(r, on) ? MATRIX_COUPLES * info->matrix_size : fits_half_backward(r, info) ? BACKWARD_HELD : 0;
}

/* fp32 sums of dk and dv for every part of the queries, behind the rows. */
static size_t parts_offset(const record *r, const gpu *on) {
    const size_t alignment = gpu_get_limits(on)->offset_alignment;
    return (rows_bytes(r, on) + alignment - 1) / alignment * alignment;
}
static size_t grad_bytes(const record *r, const gpu *on) {
    int64_t held = held_keys(r, on), share = held ? query_share(r, held) : r->i[I_TQ];
    if (share == r->i[I_TQ]) return rows_bytes(r, on);
    int64_t elements = r->i[I_IMAGES] * r->i[I_TK] * r->i[I_HEADS] * r->i[I_WIDTH];
    return parts_offset(r, on) + (size_t)(2 * kernel_groups(r->i[I_TQ], share) * elements) * sizeof(float);
}

static void delta_vulkan(const record *r, gpu_recording *rec, int64_t pitch) {
    kernel_call k = kernel_named("attention_delta");
    kernel_read_typed(&k, r->in[4]);
    kernel_read_typed(&k, r->in[0]);
    kernel_read(&k, r->in[5]);
    kernel_write(&k, r->scratch);
    kernel_constant(&k, kernel_fours(r->i[I_WIDTH]));
    const int64_t push[] = {r->i[I_IMAGES], r->i[I_TQ], r->i[I_HEADS], r->i[I_WIDTH], pitch};
    for (size_t i = 0; i < sizeof push / sizeof *push; i++) kernel_push(&k, push[i]);
    kernel_run_over(&k, rec, r->i[I_IMAGES] * pitch * r->i[I_HEADS]);
}

static kernel_call grad_call(const record *r, const char *name) {
    kernel_call k = kernel_named(name);
    kernel_type(&k, r->in[1]);
    kernel_type(&k, r->in[2]);
    kernel_type(&k, r->in[0]);
    for (int i = 1; i < 4; i++) kernel_read(&k, r->in[i]);
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[5]);
    kernel_read(&k, r->scratch);
    return k;
}

static void grad_general(const record *r, gpu_recording *rec) {
    blocks b = choose_blocks(r, 40); /* two sums per key */
    b.columns = b.rows;
    kernel_call k = grad_call(r, "attention_backward_keys");
    kernel_write(&k, r->out[1]);
    kernel_write(&k, r->out[2]);
    shape_constants(&k, r, b);
    kernel_run(&k, rec, kernel_groups(r->i[I_TK], b.columns), r->i[I_HEADS], r->i[I_IMAGES], 4 * products(r));

    k = grad_call(r, "attention_backward_queries");
    kernel_write(&k, r->out[0]);
    shape_constants(&k, r, b);
    kernel_run(&k, rec, kernel_groups(r->i[I_TQ], b.rows), r->i[I_HEADS], r->i[I_IMAGES], 3 * products(r));
}

static kernel_call large_backward_call(const record *r, const gpu *on, const char *name, int64_t pitch, int64_t share) {
    const gpu_range rows = {r->scratch->gpu.buffer, r->scratch->gpu.offset, rows_bytes(r, on)}; /* parts lie behind */
    kernel_call k = kernel_named(name);
    for (int i = 1; i < 4; i++) kernel_read(&k, r->in[i]);
    kernel_read(&k, r->in[0]);
    kernel_bind(&k, rows, false);
    const int64_t push[] = {r->i[I_TQ], r->i[I_TK], r->i[I_HEADS], pitch};
    for (size_t i = 0; i < sizeof push / sizeof *push; i++) kernel_push(&k, push[i]);
    kernel_push_float(&k, r->f[0]);
    kernel_push(&k, share);
    return k;
}

/* dk and dv, if parts of the queries gave sums of their own. */
static void join_parts(const record *r, gpu_recording *rec, gpu_range sums, int64_t parts) {
    int64_t fours = r->i[I_IMAGES] * r->i[I_TK] * r->i[I_HEADS] * r->i[I_WIDTH] / 4;
    kernel_call k = kernel_named("attention_join");
    kernel_type(&k, r->out[1]);
    kernel_bind(&k, sums, false);
    kernel_write(&k, r->out[1]);
    kernel_write(&k, r->out[2]);
    kernel_push(&k, fours);
    kernel_push(&k, parts);
    kernel_run_over(&k, rec, fours);
}

/* One workgroup for each `held` keys and part of the queries, or `held` queries. */
static void run_keys(kernel_call *k, const record *r, gpu_recording *rec, int64_t held) {
    const gpu *on = gpu_recording_device(rec);
    int64_t parts = kernel_groups(r->i[I_TQ], query_share(r, held)), key_blocks = kernel_groups(r->i[I_TK], held);
    gpu_range sums = r->out[1]->gpu; /* something that this kernel writes; only looked at where there are parts */
    if (parts > 1)
        sums = (gpu_range){r->scratch->gpu.buffer, r->scratch->gpu.offset + parts_offset(r, on), grad_bytes(r, on) - parts_offset(r, on)};
    kernel_write(k, r->out[1]);
    kernel_write(k, r->out[2]);
    kernel_bind(k, sums, true);
    kernel_run(k, rec, parts * key_blocks, r->i[I_HEADS], r->i[I_IMAGES], 4 * products(r));
    if (parts > 1) join_parts(r, rec, sums, parts);
}
static void run_queries(kernel_call *k, const record *r, gpu_recording *rec, int64_t held) {
    kernel_write(k, r->out[0]);
    kernel_run(k, rec, kernel_groups(r->i[I_TQ], held), r->i[I_HEADS], r->i[I_IMAGES], 3 * products(r));
}

static void grad_half(const record *r, gpu_recording *rec, int64_t pitch) {
    const gpu *on = gpu_recording_device(rec);
    const gpu_info *info = gpu_get_info(on);
    int64_t share = query_share(r, BACKWARD_HELD);
    kernel_call keys = large_backward_call(r, on, "attention_half_keys", pitch, share);
    kernel_call queries = large_backward_call(r, on, "attention_half_queries", pitch, share);
    for (int i = 0; i < 2; i++) {
        kernel_call *k = i == 0 ? &keys : &queries;
        kernel_type(k, r->out[0]);
        kernel_constant(k, r->i[I_WIDTH]);
        kernel_constant(k, r->i[I_TK] % BACKWARD_PASSING != 0);
        k->subgroup = info->mixed_fma ? info->subgroup_least : 0;
    }
    run_keys(&keys, r, rec, BACKWARD_HELD);
    run_queries(&queries, r, rec, BACKWARD_HELD);
}

static void grad_matrix(const record *r, gpu_recording *rec, int64_t pitch, int64_t passing) {
    const gpu *on = gpu_recording_device(rec);
    const gpu_info *info = gpu_get_info(on);
    int64_t share = query_share(r, MATRIX_COUPLES * info->matrix_size);
    kernel_call keys = large_backward_call(r, on, "attention_matrix_keys", pitch, share);
    kernel_call queries = large_backward_call(r, on, "attention_matrix_queries", pitch, share);
    for (int i = 0; i < 2; i++) {
        kernel_call *k = i == 0 ? &keys : &queries;
        const int64_t constants[] = {2 * MATRIX_COUPLES * info->subgroup_least,
                                     r->i[I_WIDTH],
                                     passing,
                                     r->i[I_TK] % passing != 0,
                                     info->matrix_size,
                                     info->subgroup_least};
        for (size_t c = 0; c < sizeof constants / sizeof *constants; c++) kernel_constant(k, constants[c]);
        k->subgroup = info->subgroup_least;
    }
    run_keys(&keys, r, rec, MATRIX_COUPLES * info->matrix_size);
    run_queries(&queries, r, rec, MATRIX_COUPLES * info->matrix_size);
}

static void grad_vulkan(const record *r, gpu_recording *rec) {
    const gpu *on = gpu_recording_device(rec);
    int64_t pitch = rows_pitch(r, on), passing = matrix_passing(r, on);
    delta_vulkan(r, rec, pitch);
    if (passing)
        grad_matrix(r, rec, pitch, passing);
    else if (fits_half_backward(r, gpu_get_info(on)))
        grad_half(r, rec, pitch);
    else
        grad_general(r, rec);
}

static const op ATTENTION = {.name = "attention",
                             .backward = backward,
                             .scratch = forward_scratch,
                             .flops = forward_flops,
                             .narrow = forward_narrow,
                             .run_cpu = forward_cpu,
                             .run_vulkan = forward_vulkan,
                             .in_place = -1};
static const op ATTENTION_GRAD = {.name = "attention_grad",
                                  .scratch = grad_scratch,
                                  .flops = grad_flops,
                                  .narrow = grad_narrow,
                                  .run_cpu = grad_cpu,
                                  .run_vulkan = grad_vulkan,
                                  .in_place = -1};
const op *const OP_ATTENTION = &ATTENTION, *const OP_ATTENTION_GRAD = &ATTENTION_GRAD;
