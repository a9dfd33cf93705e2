/* Gradients of weights. A task is a tap's block of outputs times TILE_COLUMNS inputs; it goes through the pixels, PIECE at a time: gathers
   what they see into a panel, zeros outside, and multiplies the transposed gradient by it. */
#include "cpu/isa/rows.h"

#include <omp.h>

enum { PIECE = 64, OUTPUTS = 64 * TILE_ROWS, TASKS_PER_THREAD = 4 };
/* Multiply-adds below which waking threads costs more than they save. */
static const double SMALL = 1 << 22;

/* One thread's memory. */
typedef struct workspace {
    _Alignas(64) float panel[PIECE * TILE_COLUMNS]; /* [pixel][input] */
    pixel pixels[PIECE];
    _Alignas(64) float sums[]; /* [output][input] */
} workspace;

typedef struct blocking {
    int64_t outputs, output_blocks; /* of a task; of dw */
    int64_t input_blocks;
} blocking;

static blocking weight_blocking(const cpu_weight_grad *g, int threads) {
    blocking by = {.input_blocks = quotient_up(g->inputs, TILE_COLUMNS)};
    int64_t blocks = quotient_up(g->outputs, OUTPUTS), tasks = by.input_blocks * g->taps;
    int64_t wanted = quotient_up((int64_t)threads * TASKS_PER_THREAD, tasks);
    if (blocks < wanted) blocks = least(wanted, quotient_up(g->outputs, 2 * TILE_ROWS));
    by.outputs = round_up(quotient_up(g->outputs, blocks), TILE_ROWS);
    by.output_blocks = quotient_up(g->outputs, by.outputs);
    return by;
}

/* The gradient's rows come one after the other; the tiles that read them go down in columns. */
static void prefetch(const float *dy, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(dy + i);
}

/* Inputs column.. column + columns of what pixels first.. see through a tap. False: nothing. */
static bool gather(const cpu_weight_grad *g, int tap, int64_t first, int64_t count, int64_t column, int64_t columns, workspace *w) {
    bool any = false;
    if (g->gather) pixels_list(g->gather, first, count, w->pixels);
    for (int64_t p = 0; p < count; p++) {
        int64_t row = g->gather ? pixel_sees(g->gather, &w->pixels[p], tap / g->gather->kernel, tap % g->gather->kernel) : first + p;
        const float *x = (const float *)g->x + row * g->inputs + column;
        any |= row >= 0;
        for (int64_t j = 0; j < columns; j += LANES) {
            vec v = row < 0 ? vec_splat(0) : columns - j >= LANES ? vec_load(x + j) : vec_load_part(x, DTYPE_F32, j, (int)(columns - j));
            vec_store(w->panel + p * TILE_COLUMNS + j, v);
        }
    }
    return any;
}

static void add_row(float *dw, const float *sums, float scale, int64_t columns) {
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) vec_store(dw + j, vec_load(dw + j) + vec_load(sums + j) * vec_splat(scale));
    for (; j < columns; j++) dw[j] += sums[j] * scale;
}

static void run_task(const cpu_weight_grad *g, const blocking *by, int64_t task, workspace *w) {
    int64_t output = task % by->output_blocks * by->outputs, outputs = least(by->outputs, g->outputs - output);
    int64_t column = task / by->output_blocks % by->input_blocks * TILE_COLUMNS, columns = least(TILE_COLUMNS, g->inputs - column);
    int tap = (int)(task / (by->output_blocks * by->input_blocks)), vectors = (int)quotient_up(columns, LANES);
    bool started = false;
    for (int64_t first = 0; first < g->rows; first += PIECE) {
        int64_t count = least(PIECE, g->rows - first);
        for (int64_t p = first; p < first + count; p++) prefetch((const float *)g->dy + p * g->outputs + output, outputs);
        if (!gather(g, tap, first, count, column, columns, w)) continue;
        for (int64_t i = 0; i < outputs; i += TILE_ROWS)
            isa_tile_columns_run((int)least(TILE_ROWS, outputs - i), vectors, count, (const float *)g->dy + first * g->outputs + output + i,
                                 g->outputs, w->panel, TILE_COLUMNS, w->sums + i * TILE_COLUMNS, TILE_COLUMNS, started);
        started = true;
    }
    for (int64_t i = 0; started && i < outputs; i++)
        add_row(g->dw + (tap * g->outputs + output + i) * g->inputs + column, w->sums + i * TILE_COLUMNS, g->scale, columns);
}

static size_t workspace_bytes(const blocking *by) { return sizeof(workspace) + (size_t)(by->outputs * TILE_COLUMNS) * sizeof(float); }

static int useful_threads(const cpu_weight_grad *g, int threads) {
    return (double)g->rows * (double)g->outputs * (double)g->inputs * g->taps < SMALL ? 1 : threads;
}

size_t isa_weight_grad_scratch(const cpu_weight_grad *g, int threads) {
    threads = useful_threads(g, threads);
    blocking by = weight_blocking(g, threads);
    return (size_t)threads * workspace_bytes(&by);
}

void isa_weight_grad_run(const cpu_weight_grad *g, int threads, void *scratch) {
    threads = useful_threads(g, threads);
    blocking by = weight_blocking(g, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        workspace *w = (workspace *)(void *)((char *)scratch + (size_t)omp_get_thread_num() * workspace_bytes(&by));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < by.output_blocks * by.input_blocks * g->taps; task++) run_task(g, &by, task, w);
    }
}
