/* Matrix products on Vulkan: which kernel, in what tiles, and its launch. shaders/README.md describes the kernels. */
#include "ops/kernel.h"

enum {
    GENERAL_K = 16,          /* gemm.comp: k per step */
    HALF_K = 32,             /* gemm_half.comp: what k must be a multiple of, whatever the step */
    NARROW = 16,             /* rows or columns */
    MOST_TAPS = 32,          /* gemm_half.comp keeps a bit each */
    UNITS = 64,              /* compute units of a middling card; no device says how many it has */
    WORKGROUPS_WANTED = 128, /* that a split sum aims at */
    MOST_SPLITS = 32,
    STEPS_PER_SPLIT = 8
};

static int64_t outputs(const gemm_call *g) { return g->tap_outputs ? g->taps : 1; }
static bool eights(int64_t n) { return n % 8 == 0; }

bool kernel_gemm_fits(const gemm_call *g, gemm_kernel kernel) {
    if (kernel == GEMM_GENERAL) return true;
    bool readable = g->a->type == DTYPE_F16 && g->b->type == DTYPE_F16 && g->a_mode != GEMM_A_COLUMNS && g->b_mode != GEMM_B_GATHER;
    bool columns = g->b_mode == GEMM_B_KN ? eights(g->n) : kernel_fours(g->n);
    return readable && columns && !g->tap_outputs && g->taps <= MOST_TAPS && g->k % HALF_K == 0 && eights(g->lda) && eights(g->ldb) &&
           eights(g->tap_b);
}

static int64_t tiles(const gemm_call *g, const gemm_tiling *t) {
    return kernel_groups(g->m, t->bm) * kernel_groups(g->n, t->bn) * outputs(g);
}

/* Narrow operands (adapter ranks) get narrow tiles; large ones large tiles, unless those would leave a device idle. A weight gradient, a
   sum over many rows with few results, is cut into parts. */
static gemm_tiling general_tiling(const gemm_call *g) {
    gemm_tiling t = {.kernel = GEMM_GENERAL, .bm = 32, .bn = 32, .bk = GENERAL_K, .tm = 4, .tn = 4, .splits = 1};
    if (g->m <= NARROW)
        t.bm = 16, t.bn = 64;
    else if (g->n <= NARROW)
        t.bm = 64, t.bn = 16;
    else if (kernel_groups(g->m, 64) * kernel_groups(g->n, 64) >= 32)
        t.bm = t.bn = 64, t.tm = t.tn = 8;
    if (!g->accumulate) return t;
    int64_t splits = WORKGROUPS_WANTED / tiles(g, &t), most = kernel_groups(g->k, GENERAL_K) / STEPS_PER_SPLIT;
    if (splits > most) splits = most;
    t.splits = splits < 1 ? 1 : splits > MOST_SPLITS ? MOST_SPLITS : (int)splits;
    return t;
}

/* What the fullest unit of a card has to do, the workgroups spread over all of them. rate: how well the tile uses a unit. */
static double busiest(const gemm_call *g, const gemm_tiling *t, double rate) {
    return (double)kernel_groups(tiles(g, t), UNITS) * t->bm * t->bn / rate;
}

/* Enough parts for every unit, of some length. */
static int split_idle(const gemm_call *g, const gemm_tiling *t) {
    int64_t splits = UNITS / tiles(g, t), most = g->taps * g->k / t->bk / (2 * STEPS_PER_SPLIT);
    if (splits > most) splits = most;
    return splits < 1 ? 1 : splits > MOST_SPLITS ? MOST_SPLITS : (int)splits;
}

static gemm_tiling half_tiling(const gemm_call *g, const gpu_info *info) {
    static const int sizes[][2] = {{128, 128}, {64, 128}, {128, 64}, {64, 64}};
    bool pairs = info->mixed_fma, gcn = info->subgroup_least == 64;
    gemm_tiling best = {.kernel = GEMM_HALF}, t = {.kernel = GEMM_HALF, .bk = pairs ? 32 : 16, .tm = 8, .tn = 8, .pairs = pairs};
    t.subgroup = pairs ? info->subgroup_least : 0;
    double least = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        t.bm = sizes[i][0], t.bn = sizes[i][1];
        /* Smaller tiles load more per product; on GCN 64 x 64 takes so many registers that nothing hides the loads. */
        double rate = t.bm + t.bn == 256 ? 1 : t.bm + t.bn > 128 ? 0.98 : gcn ? 0.75 : 0.95;
        double work = busiest(g, &t, rate);
        if (best.bm && work >= least) continue;
        least = work;
        best = t;
    }
    best.splits = split_idle(g, &best);
    return best;
}

static gemm_tiling matrix_tiling(const gemm_call *g, const gpu_info *info) {
    gemm_tiling large = {.kernel = GEMM_MATRIX, .bm = 128, .bn = 128, .bk = 32, .tm = 64, .tn = 64, .subgroup = info->subgroup_least};
    gemm_tiling small = {.kernel = GEMM_MATRIX, .bm = 64, .bn = 64, .bk = 32, .tm = 32, .tn = 32, .subgroup = info->subgroup_least};
    gemm_tiling best = busiest(g, &small, 0.95) < busiest(g, &large, 1) ? small : large;
    best.splits = split_idle(g, &best);
    return best;
}

/* Software devices compute faster with small programs, and narrow products waste less of small tiles. */
static gemm_tiling choose_tiling(const gemm_call *g, const gpu *on) {
    const gpu_info *info = gpu_get_info(on);
    if (g->tiling) return *g->tiling;
    bool narrow = g->m <= NARROW || g->n <= NARROW;
    if (info->small_kernels || narrow || !kernel_gemm_fits(g, GEMM_HALF)) return general_tiling(g);
    return info->matrix_size && gpu_has_shader("gemm_matrix_h") ? matrix_tiling(g, info) : half_tiling(g, info);
}

size_t kernel_gemm_scratch(const gemm_call *g, const gpu *on) {
    int64_t splits = choose_tiling(g, on).splits;
    return splits == 1 ? 0 : (size_t)(outputs(g) * splits * g->m * g->n) * sizeof(float);
}

static int64_t vectors(const gemm_call *g) {
    bool a = kernel_fours(g->lda) && kernel_fours(g->a_mode == GEMM_A_COLUMNS ? g->m : g->k);
    bool b = kernel_fours(g->ldb) && kernel_fours(g->tap_b) && kernel_fours(g->b_mode == GEMM_B_NK ? g->k : g->n);
    return (a ? 1 : 0) | (b ? 2 : 0) | (kernel_fours(g->n) ? 4 : 0);
}

static int64_t flags(const gemm_call *g) {
    return (g->bias ? 1 : 0) | (g->shift ? 2 : 0) | (g->residual ? 4 : 0) | (g->accumulate ? 8 : 0);
}

static void push_shape(kernel_call *k, const gemm_call *g, int64_t splits, int64_t with_flags, float scale) {
    const int64_t push[] = {g->m,
                            g->n,
                            g->k,
                            g->tap_outputs ? 1 : g->taps,
                            g->lda,
                            g->ldb,
                            g->n,
                            g->tap_b,
                            g->height,
                            g->width,
                            g->source_height,
                            g->source_width,
                            g->kernel,
                            g->stride,
                            g->pad,
                            g->tap_outputs,
                            splits,
                            g->m * g->n,
                            with_flags,
                            g->rows_per_image};
    for (size_t i = 0; i < sizeof push / sizeof *push; i++) kernel_push(k, push[i]);
    kernel_push_float(k, scale);
}

static void bind_epilogue(kernel_call *k, const gemm_call *g, const tensor *c) {
    kernel_read(k, g->bias ? g->bias : c);
    kernel_read(k, g->shift ? g->shift : c);
    kernel_read(k, g->residual ? g->residual : c);
}

/* Weight gradients: C += the parts of every tap. */
static void add_parts(gpu_recording *rec, const gemm_call *g, int64_t splits) {
    kernel_call k = kernel_named("reduce");
    kernel_read(&k, g->scratch);
    kernel_write(&k, g->c);
    kernel_push(&k, outputs(g));
    kernel_push(&k, splits);
    kernel_push(&k, g->m * g->n);
    kernel_push(&k, 1);
    kernel_run_over(&k, rec, outputs(g) * g->m * g->n);
}

/* The parts of a product, and what the kernel itself would have added. */
static void finish_parts(gpu_recording *rec, const gemm_call *g, int64_t splits) {
    kernel_call k = kernel_named("gemm_finish");
    kernel_read(&k, g->scratch);
    kernel_read(&k, g->scratch);
    kernel_write_typed(&k, g->c);
    bind_epilogue(&k, g, g->c);
    push_shape(&k, g, splits, flags(g), g->scale);
    kernel_run_over(&k, rec, g->m * g->n / 4);
}

static kernel_call call_general(const gemm_call *g, const gemm_tiling *t, const tensor *c) {
    kernel_call k = kernel_named("gemm");
    kernel_read_typed(&k, g->a);
    kernel_read_typed(&k, g->b);
    kernel_write_typed(&k, c);
    const int64_t constants[] = {t->bm / t->tm * (t->bn / t->tn), t->bm, t->bn, t->bk, t->tm, t->tn, g->a_mode, g->b_mode, vectors(g)};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(&k, constants[i]);
    return k;
}

static kernel_call call_half(const gemm_call *g, const gemm_tiling *t, const tensor *c) {
    kernel_call k = kernel_named("gemm_half");
    kernel_read(&k, g->a);
    kernel_read(&k, g->b);
    kernel_write_typed(&k, c);
    const int64_t constants[] = {t->bm / t->tm * (t->bn / t->tn), t->bm, t->bn, t->bk, g->a_mode, g->b_mode, t->pairs};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(&k, constants[i]);
    return k;
}

static kernel_call call_matrix(const gemm_call *g, const gemm_tiling *t, const tensor *c, int fragment) {
    kernel_call k = kernel_named("gemm_matrix");
    kernel_read(&k, g->a);
    kernel_read(&k, g->b);
    kernel_write_typed(&k, c);
    const int64_t constants[] = {
        t->bm / t->tm * (t->bn / t->tn) * t->subgroup, t->bm, t->bn, t->bk, g->a_mode, g->b_mode, t->tm, t->tn, fragment, t->subgroup};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(&k, constants[i]);
    return k;
}

static kernel_call call_kernel(const gemm_call *g, const gemm_tiling *t, const tensor *c, const gpu *on) {
    switch (t->kernel) {
    case GEMM_HALF: return call_half(g, t, c);
    case GEMM_MATRIX: return call_matrix(g, t, c, gpu_get_info(on)->matrix_size);
    default: return call_general(g, t, c);
    }
}

void kernel_gemm(gpu_recording *rec, const gemm_call *g) {
    const gpu *on = gpu_recording_device(rec);
    const gemm_tiling t = choose_tiling(g, on);
    const tensor *c = t.splits > 1 ? g->scratch : g->c;
    kernel_call k = call_kernel(g, &t, c, on);
    gemm_call part = *g; /* of a split sum: a plain product */
    if (t.splits > 1) part.bias = part.shift = part.residual = NULL, part.accumulate = false;
    bind_epilogue(&k, &part, c);
    bool finished_later = t.splits > 1 && t.kernel != GEMM_GENERAL;
    push_shape(&k, &part, t.splits, flags(&part), finished_later ? 1 : g->scale);
    k.subgroup = t.subgroup;
    kernel_run(&k, rec, kernel_groups(g->m, t.bm), kernel_groups(g->n, t.bn), outputs(g) * t.splits,
               2.0 * (double)g->m * (double)g->n * (double)g->k * (double)g->taps);
    if (finished_later)
        finish_parts(rec, g, t.splits);
    else if (t.splits > 1)
        add_parts(rec, g, t.splits);
}
