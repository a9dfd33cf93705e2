/* Which kernel computes a matrix product on Vulkan, in what tiles, and whether its sum is split: the cheapest by a simple model of a card.
   shaders/README.md describes the kernels; bench/gpu_static says what each tile is worth. */
#include "ops/kernel.h"

enum {
    HALF_K = 32,    /* gemm_half.comp: what k must be a multiple of, whatever the step */
    MOST_TAPS = 32, /* it keeps a bit each */
    NARROW = 16,    /* rows or columns */
    MOST_SPLITS = 32,
    STEPS_PER_SPLIT = 4,
    UNROLL = 4 /* gemm.comp */
};

/* The card that the model knows: clocks, and what a compute unit does in one. Sizes between those of an RX 580 and an RX 7900 XTX; only
   ratios matter. */
enum {
    UNITS = 48,           /* where no driver says how many */
    GROUP_THREADS = 512,  /* so many threads keep a unit busy: 512 / threads workgroups run side by side */
    STALL_CLOCKS = 900,   /* of a step of the sum, where no other workgroup fills them: loads, two barriers */
    GROUP_CLOCKS = 1500,  /* a workgroup's beginning and end */
    LAUNCH_CLOCKS = 8000, /* another dispatch that waits for this one */
    CACHE_BYTES = 24,     /* from the second cache, per unit and clock */
    PARTS_BYTES = 12      /* parts of a sum on their way to memory and back, mostly in that cache */
};

static const double MATRIX_RATE = 256, SHARED_RATE = 32; /* per clock of a unit: multiply-adds, floats from shared memory */
static const double SPLIT_PENALTY = 1.03;                /* parts take memory, too */

static int64_t outputs(const gemm_call *g) { return g->tap_outputs ? g->taps : 1; }
static bool eights(int64_t n) { return n % 8 == 0; }
static double greater(double a, double b) { return a > b ? a : b; }

bool kernel_gemm_fits(const gemm_call *g, gemm_kernel kernel) {
    if (kernel == GEMM_GENERAL) return true;
    bool columns_a = g->a_mode == GEMM_A_COLUMNS, rows_b = g->b_mode == GEMM_B_NK;
    bool readable =
        g->a->type == DTYPE_F16 && g->b->type == DTYPE_F16 && !(columns_a && rows_b) && (columns_a || g->b_mode != GEMM_B_GATHER);
    bool whole = columns_a ? eights(g->m) : g->k % HALF_K == 0 && !g->tap_outputs && g->taps <= MOST_TAPS;
    bool columns = rows_b ? kernel_fours(g->n) : eights(g->n);
    return readable && whole && columns && eights(g->lda) && eights(g->ldb) && eights(g->tap_b);
}

/* What the split of a sum needs afterwards: gemm_finish takes rows in fours, reduce only adds. */
static bool splittable(const gemm_call *g) { return g->accumulate || (!g->tap_outputs && kernel_fours(g->n)); }

/* A kernel in one tile, and how well that tile uses a unit. */
typedef struct candidate {
    gemm_tiling tiling;
    double rate; /* multiply-adds per clock */
} candidate;

static int threads_of(const gemm_tiling *t) {
    int slices = t->slices > 1 ? t->slices : 1, wave = t->kernel == GEMM_MATRIX ? t->subgroup : 1;
    return t->bm / t->tm * (t->bn / t->tn) * slices * wave;
}

/* Clocks of the unit that has most to do: its workgroups side by side, their steps in turn. */
static double clocks(const gemm_call *g, const candidate *c, int splits, int units) {
    const gemm_tiling *t = &c->tiling;
    int64_t groups = kernel_groups(g->m, t->bm) * kernel_groups(g->n, t->bn) * outputs(g) * splits;
    int64_t steps = kernel_groups(kernel_groups(g->k, t->bk) * (g->tap_outputs ? 1 : g->taps), splits);
    double share = (double)kernel_groups(groups, units), beside = GROUP_THREADS / threads_of(t) > 1 ? GROUP_THREADS / threads_of(t) : 1;
    double turns = (double)kernel_groups((int64_t)share, (int64_t)beside), together = share < beside ? share : beside;
    double bytes = (double)t->bk * (double)(t->bm * (int)dtype_size(g->a->type) + t->bn * (int)dtype_size(g->b->type));
    double step = greater((double)t->bm * t->bn * t->bk / c->rate, bytes / CACHE_BYTES);
    double all = (double)steps * (share * step + turns * STALL_CLOCKS / together) + turns * GROUP_CLOCKS;
    if (splits > 1)
        all += LAUNCH_CLOCKS + (double)(outputs(g) * g->m * g->n) * (2 * splits + 1) * sizeof(float) / ((double)units * PARTS_BYTES);
    return splits > 1 ? SPLIT_PENALTY * all : all;
}

/* The best number of parts for a candidate, if it beats what there is. */
static void consider(const gemm_call *g, const candidate *c, int units, gemm_tiling *best, double *least) {
    int64_t steps = kernel_groups(g->k, c->tiling.bk) * (g->tap_outputs ? 1 : g->taps), most = steps / STEPS_PER_SPLIT;
    if (!splittable(g) || most < 1) most = 1;
    for (int splits = 1; splits <= most && splits <= MOST_SPLITS; splits += splits < 4 ? 1 : splits / 2) {
        double cost = clocks(g, c, splits, units);
        if (*least > 0 && cost >= *least) continue;
        *least = cost;
        *best = c->tiling;
        best->splits = splits;
    }
}

/* Multiply-adds per clock on vector units. Those beside matrix units are twice as wide. */
static double vector_rate(const gpu_info *info) { return info->matrix_size ? 128 : 64; }

/* gemm.comp. Narrow tiles are for adapter ranks and gradients of adapters; their slices of the sum make threads enough to fetch what it
   reads. A thread of 4 x 4 results is bound by shared memory. */
static void consider_general(const gemm_call *g, const gpu_info *info, int units, gemm_tiling *best, double *least) {
    static const struct {
        int bm, bn, bk, tm, tn, slices;
        double useful; /* share of that rate; narrow tiles are 85 % multiply-adds, large ones take so many registers that loads show */
    } tiles[] = {
        {64, 64, 16, 8, 8, 1, 0.78},  {64, 64, 32, 8, 8, 2, 0.80}, {32, 32, 16, 4, 4, 1, 0.80},
        {32, 32, 64, 4, 4, 4, 0.80},  {64, 16, 64, 8, 4, 8, 0.82}, {32, 16, 64, 8, 4, 8, 0.82},
        {16, 16, 128, 4, 4, 8, 0.65}, {16, 64, 64, 4, 8, 8, 0.82}, {16, 32, 64, 4, 8, 8, 0.82},
    };
    bool gathers = g->a_mode == GEMM_A_FORWARD || g->a_mode == GEMM_A_BACKWARD || g->b_mode == GEMM_B_GATHER;
    double gathering = gathers ? 0.8 : 1;
    for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++) {
        double shared = SHARED_RATE * tiles[i].tm * tiles[i].tn / (tiles[i].tm + tiles[i].tn), vector = vector_rate(info);
        candidate c = {.tiling = {.kernel = GEMM_GENERAL,
                                  .bm = tiles[i].bm,
                                  .bn = tiles[i].bn,
                                  .bk = tiles[i].bk,
                                  .tm = tiles[i].tm,
                                  .tn = tiles[i].tn,
                                  .slices = tiles[i].slices,
                                  .unroll = UNROLL},
                       .rate = gathering * tiles[i].useful * (shared < vector ? shared : vector)};
        consider(g, &c, units, best, least);
    }
}

static void consider_half(const gemm_call *g, const gpu_info *info, int units, gemm_tiling *best, double *least) {
    static const int sizes[][2] = {{128, 128}, {64, 128}, {128, 64}, {64, 64}};
    bool pairs = info->mixed_fma, gcn = info->subgroup_least == 64;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        candidate c = {.tiling = {.kernel = GEMM_HALF, .bm = sizes[i][0], .bn = sizes[i][1], .tm = 8, .tn = 8, .pairs = pairs}};
        c.tiling.bk = pairs ? 32 : 16;
        c.tiling.subgroup = pairs ? info->subgroup_least : 0;
        /* Smaller tiles load more per product; on GCN 64 x 64 takes so many registers that nothing hides the loads. */
        int sum = c.tiling.bm + c.tiling.bn;
        c.rate = vector_rate(info) * (sum == 256 ? 1 : sum > 128 ? 0.98 : gcn ? 0.75 : 0.95);
        consider(g, &c, units, best, least);
    }
}

static void consider_matrix(const gemm_call *g, const gpu_info *info, int units, gemm_tiling *best, double *least) {
    for (int side = 64; side <= 128; side *= 2) {
        candidate c = {.tiling = {.kernel = GEMM_MATRIX, .bm = side, .bn = side, .bk = 32, .tm = side / 2, .tn = side / 2},
                       .rate = MATRIX_RATE * (side == 128 ? 1 : 0.95)};
        c.tiling.subgroup = info->subgroup_least;
        consider(g, &c, units, best, least);
    }
}

/* Software devices compute faster with small programs; a weight gradient is cut into a few parts for their threads. */
static gemm_tiling small_tiling(const gemm_call *g) {
    enum { GENERAL_K = 16, GROUPS_WANTED = 128, STEPS = 8 };
    gemm_tiling t = {.kernel = GEMM_GENERAL, .bm = 32, .bn = 32, .bk = GENERAL_K, .tm = 4, .tn = 4, .splits = 1};
    if (g->m <= NARROW)
        t.bm = 16, t.bn = 64;
    else if (g->n <= NARROW)
        t.bm = 64, t.bn = 16;
    else if (kernel_groups(g->m, 64) * kernel_groups(g->n, 64) >= 32)
        t.bm = t.bn = 64, t.tm = t.tn = 8;
    if (!g->accumulate) return t;
    int64_t tiles = kernel_groups(g->m, t.bm) * kernel_groups(g->n, t.bn) * outputs(g);
    int64_t splits = GROUPS_WANTED / tiles, most = kernel_groups(g->k, GENERAL_K) / STEPS;
    if (splits > most) splits = most;
    t.splits = splits < 1 ? 1 : splits > MOST_SPLITS ? MOST_SPLITS : (int)splits;
    return t;
}

gemm_tiling kernel_gemm_tiling(const gemm_call *g, const gpu *on) {
    const gpu_info *info = gpu_get_info(on);
    if (g->tiling) return *g->tiling;
    if (info->small_kernels) return small_tiling(g);
    int units = info->units > 0 ? info->units : UNITS;
    gemm_tiling best = {.kernel = GEMM_GENERAL};
    double least = 0;
    consider_general(g, info, units, &best, &least);
    if (!kernel_gemm_fits(g, GEMM_HALF)) return best;
    if (info->matrix_size && gpu_has_shader("gemm_matrix_h"))
        consider_matrix(g, info, units, &best, &least);
    else
        consider_half(g, info, units, &best, &least);
    return best;
}
