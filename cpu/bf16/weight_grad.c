/* Gradients of linear layers' weights from operands rounded to bf16: the sum runs over the rows, which both operands are transposed to. A
   chunk of rows at a time is brought into both layouts by all threads, STEP rows a task; then each takes blocks of the result. */
#include "cpu/bf16/bf16.h"

#include <omp.h>

enum { CHUNK_BYTES = 4 << 20, LEAST_STEPS = 4 };
/* Multiply-adds below which waking threads costs more than they save. */
static const double SMALL = 1 << 22;

typedef struct blocking {
    int64_t blocks, panels; /* of outputs, of inputs: PANEL of each */
    int64_t steps;          /* of a chunk */
    int64_t plane;          /* bf16 elements of the left operand for each step */
    /* scratch, in bytes */
    size_t left, right, offsets;
} blocking;

static blocking weight_blocking(const cpu_weight_grad *g) {
    blocking by = {.blocks = quotient_up(g->outputs, PANEL), .panels = quotient_up(g->inputs, PANEL)};
    by.plane = plane_size(by.blocks * PANEL);
    int64_t step_bytes = (by.plane + by.panels * PANEL_STEP) * (int64_t)sizeof(bf16);
    by.steps = least(quotient_up(g->rows, STEP), most(CHUNK_BYTES / step_bytes, LEAST_STEPS));
    by.left = (size_t)(by.steps * by.plane) * sizeof(bf16);
    by.right = (size_t)(by.steps * by.panels * PANEL_STEP) * sizeof(bf16);
    by.offsets = (size_t)round_up(by.steps, 8) * sizeof(int64_t);
    return by;
}

/* STEP rows of dy, transposed. */
static void left_pack(const bf16_right *dy, const blocking *by, int64_t row, bf16 *plane) {
    bf16 pairs[PANEL_STEP];
    for (int64_t output = 0; output < by->blocks * PANEL; output += PANEL) {
        bf16_panel(dy, row, output, pairs);
        for (int64_t side = 0; side < least(dy->n - output, PANEL); side += SIDE) {
            vec tile[SIDE];
            UNROLL for (int i = 0; i < SIDE; i++) tile[i] = (vec)_mm512_loadu_si512(pairs + side * STEP + i * STEP);
            vec_transpose(tile);
            UNROLL for (int i = 0; i < SIDE; i++) _mm512_store_si512(plane + (output + side + i) * STEP, (__m512i)tile[i]);
        }
    }
}

/* Sums [PANEL, PANEL] into dw. */
static void block_add(const cpu_weight_grad *g, int64_t output, int64_t input, const float *sums) {
    int64_t outputs = least(g->outputs - output, PANEL), inputs = least(g->inputs - input, PANEL);
    for (int64_t i = 0; i < outputs; i++)
        for (int64_t j = 0; j < inputs; j += SIDE) {
            float *dw = g->dw + (output + i) * g->inputs + input + j;
            __mmask16 mask = (__mmask16)(0xffffu >> (SIDE - least(inputs - j, SIDE)));
            vec sum = vec_load(sums + i * PANEL + j) * g->scale;
            _mm512_mask_storeu_ps(dw, mask, (__m512)((vec)_mm512_maskz_loadu_ps(mask, dw) + sum));
        }
}

/* One chunk; all threads. */
static void chunk_run(const cpu_weight_grad *g, const blocking *by, int64_t first, const int64_t *offsets, bf16 *left, bf16 *right) {
    const bf16_right dy = {g->dy, g->dy_type, true, g->outputs, g->rows, g->outputs};
    const bf16_right x = {g->x, g->x_type, true, g->inputs, g->rows, g->inputs};
    int64_t steps = least(quotient_up(g->rows - first, STEP), by->steps);
    _Alignas(64) float sums[PANEL * PANEL];
#pragma omp for schedule(static)
    for (int64_t s = 0; s < steps; s++) {
        left_pack(&dy, by, first + s * STEP, left + s * by->plane);
        for (int64_t panel = 0; panel < by->panels; panel++)
            bf16_panel(&x, first + s * STEP, panel * PANEL, right + (panel * by->steps + s) * PANEL_STEP);
    }
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t panel = 0; panel < by->panels; panel++)
        for (int64_t block = 0; block < by->blocks; block++) {
            const bf16_left rows = {left + block * PANEL * STEP, offsets, STEP, false};
            bf16_block(g->outputs - block * PANEL > SIDE ? 2 : 1, g->inputs - panel * PANEL > SIDE ? 2 : 1, steps, &rows,
                       right + panel * by->steps * PANEL_STEP, PANEL_STEP, sums, PANEL, false, NULL);
            block_add(g, block * PANEL, panel * PANEL, sums);
        }
}

size_t bf16_weight_grad_scratch(const cpu_weight_grad *g, int threads) {
    (void)threads;
    blocking by = weight_blocking(g);
    return by.left + by.right + by.offsets;
}

void bf16_weight_grad_run(const cpu_weight_grad *g, int threads, void *scratch) {
    blocking by = weight_blocking(g);
    bf16 *left = scratch, *right = left + by.left / sizeof *left;
    int64_t *offsets = (int64_t *)(void *)((char *)scratch + by.left + by.right);
    for (int64_t s = 0; s < by.steps; s++) offsets[s] = s * by.plane;
    if ((double)g->rows * (double)g->outputs * (double)g->inputs < SMALL) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        bf16_begin();
        for (int64_t first = 0; first < g->rows; first += by.steps * STEP) chunk_run(g, &by, first, offsets, left, right);
        bf16_end();
    }
}
