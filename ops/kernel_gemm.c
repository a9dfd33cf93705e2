/* Matrix products on Vulkan: their launch, once kernel_tiling.c has chosen how. shaders/README.md describes the kernels. */
#include "ops/kernel.h"

static int64_t outputs(const gemm_call *g) { return g->tap_outputs ? g->taps : 1; }

size_t kernel_gemm_scratch(const gemm_call *g, const gpu *on) {
    int64_t splits = kernel_gemm_tiling(g, on).splits;
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

static void push_shape(kernel_call *k, const gemm_call *g, int64_t splits, float scale) {
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
                            g->rows_per_image};
    for (size_t i = 0; i < sizeof push / sizeof *push; i++) kernel_push(k, push[i]);
    kernel_push_float(k, scale);
}

static void bind_epilogue(kernel_call *k, const gemm_call *g, const tensor *c) {
    kernel_read(k, g->bias ? g->bias : c);
    kernel_read(k, g->shift ? g->shift : c);
    kernel_read(k, g->residual ? g->residual : c);
}

/* Weight gradients: C (+)= the parts of every tap. */
static void add_parts(gpu_recording *rec, const gemm_call *g, int64_t splits) {
    kernel_reduce(rec, g->scratch, g->c, outputs(g), splits, g->m * g->n, g->accumulate);
}

/* The parts of a product, and what the kernel itself would have added. */
static void finish_parts(gpu_recording *rec, const gemm_call *g, int64_t splits) {
    kernel_call k = kernel_named("gemm_finish");
    kernel_read(&k, g->scratch);
    kernel_read(&k, g->scratch);
    kernel_write_typed(&k, g->c);
    bind_epilogue(&k, g, g->c);
    kernel_constant(&k, flags(g));
    push_shape(&k, g, splits, g->scale);
    kernel_run_over(&k, rec, g->m * g->n / 4);
}

/* The backward-data of a convolution with stride takes rows by their place modulo the stride (A 4 in gemm_tiles.glsl). */
static bool by_classes(const gemm_call *g, const gemm_tiling *t) {
    return t->kernel != GEMM_GENERAL && g->a_mode == GEMM_A_BACKWARD && g->stride > 1 && g->kernel >= g->stride;
}

static int64_t row_groups(const gemm_call *g, const gemm_tiling *t) {
    if (!by_classes(g, t)) return kernel_groups(g->m, t->bm);
    int64_t groups = 0, images = g->m / (g->height * g->width);
    for (int64_t y = 0; y < g->stride; y++)
        for (int64_t x = 0; x < g->stride; x++)
            groups += kernel_groups(images * kernel_groups(g->height - y, g->stride) * kernel_groups(g->width - x, g->stride), t->bm);
    return groups;
}

static void push_constants(kernel_call *k, const int64_t *values, size_t count) {
    for (size_t i = 0; i < count; i++) kernel_constant(k, values[i]);
}

static kernel_call call_general(const gemm_call *g, const gemm_tiling *t, const tensor *c) {
    kernel_call k = kernel_named("gemm");
    kernel_read_typed(&k, g->a);
    kernel_read_typed(&k, g->b);
    kernel_write_typed(&k, c);
    int64_t slices = t->slices > 1 ? t->slices : 1, unroll = t->unroll > 1 ? t->unroll : 1, exact = g->k % t->bk == 0;
    int64_t threads = t->bm / t->tm * (t->bn / t->tn) * slices, access = vectors(g) | flags(g) << 3;
    const int64_t constants[] = {threads, t->bm, t->bn, t->bk, t->tm, t->tn, g->a_mode, g->b_mode, access, slices, exact, unroll};
    push_constants(&k, constants, sizeof constants / sizeof *constants);
    return k;
}

static kernel_call call_half(const gemm_call *g, const gemm_tiling *t, const tensor *c) {
    kernel_call k = kernel_named("gemm_half");
    kernel_read(&k, g->a);
    kernel_read(&k, g->b);
    kernel_write_typed(&k, c);
    int64_t a_mode = by_classes(g, t) ? GEMM_A_CLASSES : g->a_mode;
    const int64_t constants[] = {
        t->bm / t->tm * (t->bn / t->tn), t->bm, t->bn, t->bk, a_mode, g->b_mode, t->pairs, g->k % t->bk != 0, flags(g)};
    push_constants(&k, constants, sizeof constants / sizeof *constants);
    return k;
}

static kernel_call call_matrix(const gemm_call *g, const gemm_tiling *t, const tensor *c, int fragment) {
    kernel_call k = kernel_named("gemm_matrix");
    kernel_read(&k, g->a);
    kernel_read(&k, g->b);
    kernel_write_typed(&k, c);
    int64_t a_mode = by_classes(g, t) ? GEMM_A_CLASSES : g->a_mode, threads = t->bm / t->tm * (t->bn / t->tn) * t->subgroup;
    const int64_t constants[] = {threads,           t->bm,   t->bn, t->bk, a_mode, g->b_mode, t->tm, t->tn, fragment, t->subgroup,
                                 g->k % t->bk != 0, flags(g)};
    push_constants(&k, constants, sizeof constants / sizeof *constants);
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
    const gemm_tiling t = kernel_gemm_tiling(g, on);
    const tensor *c = t.splits > 1 ? g->scratch : g->c;
    gemm_call part = *g; /* of a split sum: a plain product */
    if (t.splits > 1) part.bias = part.shift = part.residual = NULL, part.accumulate = false;
    kernel_call k = call_kernel(&part, &t, c, on);
    bind_epilogue(&k, &part, c);
    bool finished_later = t.splits > 1 && !g->accumulate;
    push_shape(&k, &part, t.splits, finished_later ? 1 : g->scale);
    k.subgroup = t.subgroup;
    kernel_run(&k, rec, row_groups(g, &t), kernel_groups(g->n, t.bn), outputs(g) * t.splits,
               2.0 * (double)g->m * (double)g->n * (double)g->k * (double)g->taps);
    if (finished_later)
        finish_parts(rec, g, t.splits);
    else if (t.splits > 1)
        add_parts(rec, g, t.splits);
}
