/* Linear layers and direct convolution, forward and backward-data, of operands rounded to bf16.

   The result goes in bands of lines. Where there are several, the threads first convert a chunk of the right operand's panels together,
   then take bands: each converts what its band sees of the left operand, which then stays in its second-level cache, and multiplies it with
   all panels. Where one band is all, they convert the left operand together and take panels, which each converts piece by piece. Neither
   changes the order of a sum, nor does the number of threads. */
#include "cpu/bf16/bf16.h"

#include <omp.h>

enum {
    PIECE = 16,              /* steps: a panel's piece of 32 KiB stays in the L1 cache */
    BAND_BYTES = 1 << 20,    /* of the left operand */
    LEAST_SLOTS = 2 * PANEL, /* of a band */
    CHUNK_BYTES = 32 << 20,  /* of converted panels */
    PAST_BYTES = 1 << 20,    /* of a result */
    MOST_GROUP = 4,          /* panels */
    TASKS_PER_THREAD = 2
};
/* Multiply-adds below which waking threads costs more than they save. */
static const double SMALL = 1 << 22;

/* A phase of the result: which part of the taps it sees. */
typedef struct phase {
    int y, x, first, count;
} phase;

typedef struct blocking {
    bf16_layout layout;
    int64_t bands;
    int64_t panels, chunk; /* of B; converted together (0: each piece by the task that needs it) */
    int64_t panel_size;    /* bf16 elements */
    int64_t group;         /* panels of a task that converts them */
    /* scratch, in bytes */
    size_t planes, row_map, offsets, taps, converted, sums, shared, own;
} blocking;

static size_t in_lines(int64_t bytes) { return (size_t)round_up(bytes, 64); }

/* Of a panel. */
static int64_t sums_size(const blocking *by) { return round_up(by->layout.band * by->layout.x.pitch, PANEL) * PANEL; }

static int threads_of(const cpu_gemm *g, int threads) { return (double)g->m * (double)g->n * (double)g->k * g->taps < SMALL ? 1 : threads; }

static blocking gemm_blocking(const cpu_gemm *g, int threads) {
    blocking by = {.layout = bf16_layout_of(g), .panels = quotient_up(g->n, PANEL)};
    bf16_layout *l = &by.layout;
    int64_t line = l->x.pitch * l->steps * STEP * (int64_t)sizeof(bf16) * l->y.step * l->x.step;
    int64_t band = least(l->lines, most(BAND_BYTES / line, 1)), wanted = (int64_t)threads * TASKS_PER_THREAD;
    if (threads > 1 && (band < l->lines || by.panels < wanted)) {
        int64_t parts = band < l->lines ? wanted : quotient_up(wanted, by.panels);
        band = least(band, most(quotient_up(l->lines, parts), quotient_up(LEAST_SLOTS, l->x.pitch)));
    }
    by.bands = quotient_up(l->lines, band);
    bf16_layout_cut(l, quotient_up(l->lines, by.bands));
    by.panel_size = g->taps * l->steps * PANEL_STEP;
    int64_t fit = most(CHUNK_BYTES / (by.panel_size * (int64_t)sizeof(bf16)), 1);
    by.chunk = by.bands > 1 ? least(by.panels, fit) : 0;
    by.planes = in_lines(l->plane * l->steps * (int64_t)sizeof(bf16));
    by.row_map = in_lines(l->band * l->x.pitch * (int64_t)sizeof(int32_t));
    by.offsets = in_lines(g->taps * l->steps * (int64_t)sizeof(int64_t));
    by.taps = in_lines(g->taps * (int64_t)sizeof(bf16_tap));
    /* Several panels at once, if there are enough: rows of weights are far apart, and short pieces of them slow to fetch; a left operand
       that the second-level cache does not hold is fetched less often. */
    bool together = !by.chunk && (g->kn || by.planes > BAND_BYTES);
    by.group = together ? most(least(by.panels / wanted, MOST_GROUP), 1) : 1;
    by.converted = in_lines((by.chunk ? by.chunk * by.panel_size : by.group * PIECE * PANEL_STEP) * (int64_t)sizeof(bf16));
    by.sums = in_lines(by.group * sums_size(&by) * (int64_t)sizeof(float));
    by.shared = by.offsets + by.taps + (by.chunk ? by.converted : by.planes + by.row_map);
    by.own = by.sums + (by.chunk ? by.planes + by.row_map : by.converted);
    return by;
}

/* A call, as a thread sees it. */
typedef struct job {
    const cpu_gemm *g;
    blocking by;
    const phase *phases;
    int phase_count;
    int64_t *offsets; /* of planes and taps, in the order of sums, phase after phase */
    bf16_tap *taps;
    bf16 *planes, *converted;
    int32_t *row_map;
    float *sums;
} job;

static void *take(char **scratch, size_t bytes) {
    char *p = *scratch;
    *scratch += bytes;
    return p;
}

static void job_share(job *j, char *scratch) {
    j->offsets = take(&scratch, j->by.offsets);
    j->taps = take(&scratch, j->by.taps);
    if (j->by.chunk)
        j->converted = take(&scratch, j->by.converted);
    else
        j->planes = take(&scratch, j->by.planes), j->row_map = take(&scratch, j->by.row_map);
}

static void job_own(job *j, char *scratch) {
    j->sums = take(&scratch, j->by.sums);
    if (j->by.chunk)
        j->planes = take(&scratch, j->by.planes), j->row_map = take(&scratch, j->by.row_map);
    else
        j->converted = take(&scratch, j->by.converted);
}

/* Phase number i of the result; `first`: taps that earlier ones saw. */
static phase phase_of(const job *j, int i, int first) {
    const bf16_layout *l = &j->by.layout;
    phase p = {.y = i / l->x.out_step, .x = i % l->x.out_step, .first = first};
    p.count = bf16_layout_taps(j->g, l, p.y, p.x, j->taps + first);
    for (int t = 0; t < p.count; t++)
        for (int64_t s = 0; s < l->steps; s++) j->offsets[(first + t) * l->steps + s] = s * l->plane + j->taps[first + t].slots * STEP;
    return p;
}

/* The weights that step `step` of a sum multiplies by; *k: from where on. */
INLINE bf16_right step_weights(const job *j, const phase *p, int64_t step, int64_t *k) {
    const cpu_gemm *g = j->g;
    int64_t steps = j->by.layout.steps, tap = j->taps[p->first + step / steps].tap;
    *k = step % steps * STEP;
    const char *data = (const char *)g->b + (size_t)(tap * g->n * g->k) * dtype_size(g->b_type);
    return (bf16_right){data, g->b_type, g->kn, g->n, g->k, g->kn ? g->n : g->k};
}

/* Steps [step, step + count) of panels, `size` elements apart, converted. */
static void panels_convert(const job *j, const phase *p, int64_t panel, int64_t panels, int64_t step, int64_t count, int64_t size,
                           bf16 *out) {
    for (int64_t s = step; s < step + count; s++, out += PANEL_STEP) {
        int64_t k;
        bf16_right weights = step_weights(j, p, s, &k);
        for (int64_t i = 0; i < panels; i++) bf16_panel(&weights, k, (panel + i) * PANEL, out + i * size);
    }
}

/* sums [rows, PANEL] to rows of C, from `column` on. */
INLINE void block_finish(const cpu_gemm *g, const float *sums, const int32_t *row_map, int64_t rows, int64_t column,
                         const __mmask16 mask[2], const bool past) {
    __m512 scale = _mm512_set1_ps(g->scale), bias[2];
    UNROLL for (int j = 0; j < 2; j++) bias[j] =
        g->bias ? _mm512_maskz_loadu_ps(mask[j], g->bias + column + j * SIDE) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; r++, sums += PANEL) {
        int64_t row = row_map[r], at = row * g->n + column;
        if (row < 0) continue;
        const float *shift = g->shift ? g->shift + (uint32_t)row / (uint32_t)g->rows_per_image * g->n + column : NULL;
        UNROLL for (int j = 0; j < 2; j++) {
            if (!past && !mask[j]) continue;
            __m512 v = _mm512_fmadd_ps(_mm512_load_ps(sums + j * SIDE), scale, bias[j]);
            if (shift) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask[j], shift + j * SIDE));
            if (g->residual) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask[j], g->residual + at + j * SIDE));
            if (past)
                _mm512_stream_ps(g->c + at + j * SIDE, v);
            else
                _mm512_mask_storeu_ps(g->c + at + j * SIDE, mask[j], v);
        }
    }
}

/* A result that the second-level cache does not hold anyway is written four times as fast past it: memory is not read first. */
static bool writes_past(const cpu_gemm *g) {
    return g->m * g->n * (int64_t)sizeof *g->c >= PAST_BYTES && g->n % PANEL == 0 && (uintptr_t)g->c % 64 == 0 && g->residual != g->c;
}

/* One piece of a panel's sums. */
typedef struct piece {
    int64_t panel, step, steps;
    const bf16 *converted;
    float *sums;
    bool first, last;
} piece;

/* Slots [slot, slot + PANEL) of a band of `slots`. */
static void block_run(const job *j, const phase *p, const piece *w, int64_t slots, int64_t slot) {
    int64_t column = w->panel * PANEL, columns = least(j->g->n - column, PANEL), rows = least(slots - slot, PANEL);
    uint32_t there = 0xffffffffu >> (PANEL - columns);
    const __mmask16 mask[2] = {(__mmask16)there, (__mmask16)(there >> SIDE)};
    float *c = w->sums + (w->first && w->last ? 0 : slot * PANEL);
    bf16_block(rows > SIDE ? 2 : 1, columns > SIDE ? 2 : 1, w->steps, j->planes + slot * STEP,
               j->offsets + p->first * j->by.layout.steps + w->step, w->converted, PANEL_STEP, c, PANEL, !w->first);
    if (!w->last) return;
    if (writes_past(j->g))
        block_finish(j->g, c, j->row_map + slot, rows, column, mask, true);
    else
        block_finish(j->g, c, j->row_map + slot, rows, column, mask, false);
}

/* The band's `slots` slots times panels. converted: NULL, or the (one) panel. */
static void panels_multiply(const job *j, const phase *p, int64_t slots, int64_t panel, int64_t panels, const bf16 *converted) {
    int64_t steps = p->count * j->by.layout.steps, pieces = most(quotient_up(steps, PIECE), 1), size = quotient_up(steps, pieces);
    for (int64_t i = 0, at = 0; i < pieces; i++, at += size) {
        int64_t here = least(size, steps - at);
        if (!converted) panels_convert(j, p, panel, panels, at, here, PIECE * PANEL_STEP, j->converted);
        for (int64_t n = 0; n < panels; n++) {
            const bf16 *from = converted ? converted + at * PANEL_STEP : j->converted + n * PIECE * PANEL_STEP;
            const piece w = {panel + n, at, here, from, j->sums + n * sums_size(&j->by), i == 0, i == pieces - 1};
            for (int64_t slot = 0; slot < slots; slot += PANEL) block_run(j, p, &w, slots, slot);
        }
    }
}

/* Bands; all threads. */
static void bands_run(const job *j) {
    const blocking *by = &j->by;
    const bf16_layout *l = &by->layout;
    for (int64_t first = 0; first < by->panels; first += by->chunk) {
        int64_t panels = least(by->chunk, by->panels - first), steps = by->panel_size / PANEL_STEP, pieces = quotient_up(steps, PIECE);
        const phase all = {.count = j->g->taps};
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < panels * pieces; i++) {
            int64_t step = i % pieces * PIECE;
            panels_convert(j, &all, first + i / pieces, 1, step, least(PIECE, steps - step), 0,
                           j->converted + i / pieces * by->panel_size + step * PANEL_STEP);
        }
#pragma omp for schedule(dynamic)
        for (int64_t band = 0; band < by->bands; band++) {
            int64_t line = band * l->band, lines = least(l->band, l->lines - line);
            for (int64_t i = 0; i < lines + l->y.reach + 1; i++) bf16_layout_pack(j->g, l, line, i, j->planes);
            for (const phase *p = j->phases; p < j->phases + j->phase_count; p++) {
                for (int64_t i = 0; i < lines; i++) bf16_layout_rows(l, p->y, p->x, line, i, j->row_map);
                for (int64_t panel = 0; panel < panels; panel++)
                    panels_multiply(j, p, lines * l->x.pitch, first + panel, 1,
                                    j->converted + panel * by->panel_size + p->first * l->steps * PANEL_STEP);
            }
        }
    }
}

/* The one band there is; all threads. */
static void panels_run(const job *j) {
    const bf16_layout *l = &j->by.layout;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < l->lines + l->y.reach + 1; i++) bf16_layout_pack(j->g, l, 0, i, j->planes);
    for (const phase *p = j->phases; p < j->phases + j->phase_count; p++) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < l->lines; i++) bf16_layout_rows(l, p->y, p->x, 0, i, j->row_map);
#pragma omp for schedule(dynamic)
        for (int64_t panel = 0; panel < j->by.panels; panel += j->by.group)
            panels_multiply(j, p, l->lines * l->x.pitch, panel, least(j->by.group, j->by.panels - panel), NULL);
    }
}

size_t bf16_gemm_scratch(const cpu_gemm *g, int threads) {
    threads = threads_of(g, threads);
    blocking by = gemm_blocking(g, threads);
    return by.shared + (size_t)threads * by.own;
}

void bf16_gemm_run(const cpu_gemm *g, int threads, void *scratch) {
    threads = threads_of(g, threads);
    phase phases[MOST_STRIDE * MOST_STRIDE];
    job shared = {.g = g, .by = gemm_blocking(g, threads), .phases = phases};
    job_share(&shared, scratch);
    shared.phase_count = shared.by.layout.y.out_step * shared.by.layout.x.out_step;
    for (int i = 0, first = 0; i < shared.phase_count; first += phases[i++].count) phases[i] = phase_of(&shared, i, first);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        job j = shared;
        job_own(&j, (char *)scratch + j.by.shared + (size_t)omp_get_thread_num() * j.by.own);
        bf16_begin();
        if (j.by.chunk)
            bands_run(&j);
        else
            panels_run(&j);
        bf16_end();
        _mm_sfence(); /* for what was written past the caches */
    }
}
