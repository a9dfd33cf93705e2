#include "ops/kernel.h"

#include <stdio.h>
#include <string.h>

kernel_call kernel_named(const char *name) {
    kernel_call k = {.range_count = 0};
    snprintf(k.shader, sizeof k.shader, "%s", name);
    return k;
}

void kernel_type(kernel_call *k, const tensor *x) {
    size_t length = strlen(k->shader);
    if (length + 3 > sizeof k->shader) return;
    if (k->type_count++ == 0) k->shader[length++] = '_';
    k->shader[length++] = x->type == DTYPE_F16 ? 'h' : 'f';
    k->shader[length] = 0;
}

void kernel_bind(kernel_call *k, gpu_range range, bool written) {
    if (k->range_count == KERNEL_BINDINGS) return;
    if (written) k->written |= 1u << k->range_count;
    k->ranges[k->range_count++] = range;
}

void kernel_read(kernel_call *k, const tensor *x) { kernel_bind(k, x->gpu, false); }
void kernel_write(kernel_call *k, const tensor *x) { kernel_bind(k, x->gpu, true); }

void kernel_read_typed(kernel_call *k, const tensor *x) {
    kernel_type(k, x);
    kernel_read(k, x);
}

void kernel_write_typed(kernel_call *k, const tensor *x) {
    kernel_type(k, x);
    kernel_write(k, x);
}

void kernel_constant(kernel_call *k, int64_t value) {
    if (k->constant_count < KERNEL_CONSTANTS) k->constants[k->constant_count++] = (uint32_t)value;
}

void kernel_push(kernel_call *k, int64_t value) {
    if (k->push_count < KERNEL_PUSH) k->push[k->push_count++] = (uint32_t)value;
}

void kernel_push_float(kernel_call *k, float value) {
    if (k->push_count < KERNEL_PUSH) memcpy(&k->push[k->push_count++], &value, sizeof value);
}

void kernel_run(const kernel_call *k, gpu_recording *rec, int64_t x, int64_t y, int64_t z, double flops) {
    gpu_dispatch d = {.shader = k->shader,
                      .constants = k->constants,
                      .constant_count = k->constant_count,
                      .push = k->push,
                      .push_bytes = (uint32_t)(k->push_count * (int)sizeof(uint32_t)),
                      .ranges = k->ranges,
                      .range_count = k->range_count,
                      .written = k->written,
                      .groups = {(uint32_t)x, (uint32_t)y, (uint32_t)z}};
    gpu_record(rec, &d, flops);
}

void kernel_run_groups(const kernel_call *k, gpu_recording *rec, int64_t groups) {
    const int64_t row = 32768;
    if (groups <= row)
        kernel_run(k, rec, groups, 1, 1, 0);
    else
        kernel_run(k, rec, row, kernel_groups(groups, row), 1, 0);
}

void kernel_run_over(const kernel_call *k, gpu_recording *rec, int64_t elements) {
    kernel_run_groups(k, rec, kernel_groups(elements, 128));
}

/* ---- matrix products ---- */

typedef struct tile {
    int bm, bn, tm, tn;
} tile;

enum { TILE_K = 16, WORKGROUPS_WANTED = 128, MOST_SPLITS = 32, STEPS_PER_SPLIT = 8 };

/* Narrow operands (adapter ranks) get narrow tiles; large ones large tiles, unless those would leave a device idle. */
static tile choose_tile(const gemm_call *g) {
    if (g->m <= 16) return (tile){16, 64, 4, 4};
    if (g->n <= 16) return (tile){64, 16, 4, 4};
    if (kernel_groups(g->m, 64) * kernel_groups(g->n, 64) >= 32) return (tile){64, 64, 8, 8};
    return (tile){32, 32, 4, 4};
}

static int64_t outputs(const gemm_call *g) { return g->tap_outputs ? g->taps : 1; }

/* A sum over many rows with few results is cut into parts that are added afterwards, always in the same order. */
static int64_t choose_splits(const gemm_call *g) {
    if (!g->accumulate) return 1;
    tile t = choose_tile(g);
    int64_t tiles = kernel_groups(g->m, t.bm) * kernel_groups(g->n, t.bn) * outputs(g);
    int64_t steps = kernel_groups(g->k, TILE_K), splits = WORKGROUPS_WANTED / tiles;
    if (splits > steps / STEPS_PER_SPLIT) splits = steps / STEPS_PER_SPLIT;
    return splits < 1 ? 1 : splits > MOST_SPLITS ? MOST_SPLITS : splits;
}

size_t kernel_gemm_scratch(const gemm_call *g) {
    int64_t splits = choose_splits(g);
    return splits == 1 ? 0 : (size_t)(outputs(g) * splits * g->m * g->n) * sizeof(float);
}

static int64_t vectors(const gemm_call *g) {
    bool a = kernel_fours(g->lda) && kernel_fours(g->a_mode == GEMM_A_COLUMNS ? g->m : g->k);
    bool b = kernel_fours(g->ldb) && kernel_fours(g->tap_b) && kernel_fours(g->b_mode == GEMM_B_NK ? g->k : g->n);
    return (a ? 1 : 0) | (b ? 2 : 0) | (kernel_fours(g->n) ? 4 : 0);
}

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

void kernel_gemm(gpu_recording *rec, const gemm_call *g) {
    tile t = choose_tile(g);
    int64_t splits = choose_splits(g);
    const tensor *c = splits > 1 ? g->scratch : g->c;
    kernel_call k = kernel_named("gemm");
    kernel_read_typed(&k, g->a);
    kernel_read_typed(&k, g->b);
    kernel_write_typed(&k, c);
    kernel_read(&k, g->bias ? g->bias : c);
    kernel_read(&k, g->shift ? g->shift : c);
    kernel_read(&k, g->residual ? g->residual : c);
    const int64_t constants[] = {t.bm / t.tm * (t.bn / t.tn), t.bm, t.bn, TILE_K, t.tm, t.tn, g->a_mode, g->b_mode, vectors(g)};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) kernel_constant(&k, constants[i]);
    int64_t flags = (g->bias ? 1 : 0) | (g->shift ? 2 : 0) | (g->residual ? 4 : 0) | (g->accumulate && splits == 1 ? 8 : 0);
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
                            flags,
                            g->rows_per_image};
    for (size_t i = 0; i < sizeof push / sizeof *push; i++) kernel_push(&k, push[i]);
    kernel_push_float(&k, g->scale);
    kernel_run(&k, rec, kernel_groups(g->m, t.bm), kernel_groups(g->n, t.bn), outputs(g) * splits,
               2.0 * (double)g->m * (double)g->n * (double)g->k * (double)g->taps);
    if (splits > 1) add_parts(rec, g, splits);
}
