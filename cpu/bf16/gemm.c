/* Linear layers and direct convolution, forward and backward-data, of operands rounded to bf16.

   The result goes in bands of lines. Where there are several, the threads first convert a chunk of the right operand's panels together,
   then take bands: each converts what its band sees of the left operand, which then stays in its second-level cache, and multiplies it with
   all panels. Where one band is all, they convert the left operand together and take panels, which each converts piece by piece. Packed
   weights (pack.c) are read where they lie. None of this changes the order of a sum, nor does the number of threads. */
#include "cpu/bf16/gelu.h"

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
    bool ready;            /* B is packed as this product reads it: nothing to convert */
    int64_t panel_size;    /* bf16 elements */
    int64_t group;         /* panels that a task takes together */
    /* scratch, in bytes */
    size_t planes, row_map, offsets, taps, converted, sums, shared, own;
} blocking;

static size_t in_lines(int64_t bytes) { return (size_t)round_up(bytes, 64); }

/* Of a panel. */
static int64_t sums_size(const blocking *by) { return most(round_up(by->layout.band * by->layout.x.pitch, PANEL), 2 * PANEL) * PANEL; }

static int threads_of(const cpu_gemm *g, int threads) { return (double)g->m * (double)g->n * (double)g->k * g->taps < SMALL ? 1 : threads; }

static blocking gemm_blocking(const cpu_gemm *g, int threads) {
    blocking by = {.layout = bf16_layout_of(g), .panels = quotient_up(g->n, PANEL), .ready = g->packed && !g->kn};
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
    int64_t pair = g->gated ? 2 : 1, fit = most(CHUNK_BYTES / (by.panel_size * (int64_t)sizeof(bf16)) / pair * pair, pair);
    by.chunk = by.bands > 1 ? (by.ready ? by.panels : least(by.panels, fit)) : 0;
    by.planes = in_lines(l->plane * l->steps * (int64_t)sizeof(bf16));
    by.row_map = in_lines(l->band * l->x.pitch * (int64_t)sizeof(int32_t));
    by.offsets = in_lines(g->taps * l->steps * (int64_t)sizeof(int64_t));
    by.taps = in_lines(g->taps * (int64_t)sizeof(bf16_tap));
    /* Several panels at once, if there are enough: rows of weights are far apart, and short pieces of them slow to fetch; a left operand
       that the second-level cache does not hold is fetched less often. */
    bool together = !by.chunk && ((g->kn && !by.ready) || by.planes > BAND_BYTES);
    by.group = together && !g->gated ? most(least(by.panels / wanted, MOST_GROUP), 1) : pair;
    int64_t converted = by.ready ? 0 : by.chunk ? by.chunk * by.panel_size : by.group * PIECE * PANEL_STEP;
    by.converted = in_lines(converted * (int64_t)sizeof(bf16));
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

/* Which columns of B a panel has, counted in panels: those of a gated product are taken in pairs, values and gates. */
INLINE int64_t panel_place(const job *j, int64_t panel) { return j->g->gated ? panel % 2 * (j->by.panels / 2) + panel / 2 : panel; }

/* Steps [step, step + count) of panels, `size` elements apart, converted. */
static void panels_convert(const job *j, const phase *p, int64_t panel, int64_t panels, int64_t step, int64_t count, int64_t size,
                           bf16 *out) {
    for (int64_t s = step; s < step + count; s++, out += PANEL_STEP) {
        int64_t k;
        bf16_right weights = step_weights(j, p, s, &k);
        if (j->g->packed) {
            int64_t steps = j->by.layout.steps, tap = j->taps[p->first + s / steps].tap;
            const bf16 *from = (const bf16 *)j->g->b + ((s % steps * j->g->taps + tap) * j->by.panels + panel) * PANEL_STEP;
            for (int64_t i = 0; i < panels; i++) bf16_turn(from + i * PANEL_STEP, out + i * size);
        } else {
            for (int64_t i = 0; i < panels; i++) bf16_panel(&weights, k, panel_place(j, panel + i) * PANEL, out + i * size);
        }
    }
}

/* Sums [rows, PANEL] of a block, and where they go. */
typedef struct finished {
    const cpu_gemm *g;
    const float *sums, *values; /* the latter where these are gates, else NULL */
    const int32_t *row_map;
    int64_t rows, column, columns; /* of B */
    bool past;                     /* the caches */
} finished;

/* 32 values to element `at` of C. */
INLINE void row_write(const cpu_gemm *g, const dtype type, const bool past, int64_t at, const __m512 v[2], uint32_t mask) {
    if (type == DTYPE_BF16) {
        bf16 *c = (bf16 *)g->c + at;
        __m512i joined = bf16_join((vec)v[0], (vec)v[1]);
        if (past)
            _mm512_stream_si512((void *)c, joined);
        else
            _mm512_mask_storeu_epi16(c, mask, joined);
        return;
    }
    float *c = (float *)g->c + at;
    UNROLL for (int j = 0; j < 2; j++) {
        if (past)
            _mm512_stream_ps(c + j * SIDE, v[j]);
        else
            _mm512_mask_storeu_ps(c + j * SIDE, (__mmask16)(mask >> (j * SIDE)), v[j]);
    }
}

INLINE void rows_finish(const finished *b, int64_t first, int64_t end, const dtype type, const bool past) {
    const cpu_gemm *g = b->g;
    uint32_t mask = 0xffffffffu >> (PANEL - b->columns);
    const __mmask16 half[2] = {(__mmask16)mask, (__mmask16)(mask >> SIDE)};
    const float *sums = b->sums + first * PANEL;
    __m512 scale = _mm512_set1_ps(g->scale), bias[2];
    UNROLL for (int j = 0; j < 2; j++) bias[j] =
        g->bias ? _mm512_maskz_loadu_ps(half[j], g->bias + b->column + j * SIDE) : _mm512_setzero_ps();
    for (int64_t r = first; r < end; r++, sums += PANEL) {
        int64_t row = b->row_map[r], at = row * g->n + b->column;
        if (row < 0) continue;
        const float *shift = g->shift ? g->shift + (uint32_t)row / (uint32_t)g->rows_per_image * g->n + b->column : NULL;
        __m512 v[2];
        UNROLL for (int j = 0; j < 2; j++) {
            v[j] = _mm512_fmadd_ps(_mm512_load_ps(sums + j * SIDE), scale, bias[j]);
            if (shift) v[j] = _mm512_add_ps(v[j], _mm512_maskz_loadu_ps(half[j], shift + j * SIDE));
            if (g->residual) v[j] = _mm512_add_ps(v[j], _mm512_maskz_loadu_ps(half[j], g->residual + at + j * SIDE));
        }
        row_write(g, type, past, at, v, mask);
    }
}

INLINE void rows_gate(const finished *b, int64_t first, int64_t end, const dtype type, const bool past) {
    const cpu_gemm *g = b->g;
    int64_t width = g->n / 2, column = b->column - width;
    vec scale = vec_splat(g->scale), bias[4];
    UNROLL for (int j = 0; j < 4; j++) bias[j] = g->bias ? vec_load(g->bias + column + j / 2 * width + j % 2 * SIDE) : vec_splat(0);
    for (int64_t r = first; r < end; r++) {
        const float *values = b->values + r * PANEL, *gates = b->sums + r * PANEL;
        __m512 v[2];
        if (b->row_map[r] < 0) continue;
        UNROLL for (int j = 0; j < 2; j++) v[j] =
            (__m512)((vec_load(values + j * SIDE) * scale + bias[j]) * vec_gelu(vec_load(gates + j * SIDE) * scale + bias[2 + j]));
        row_write(g, type, past, b->row_map[r] * width + column, v, 0xffffffffu);
    }
}

/* A result that the second-level cache does not hold anyway is written four times as fast past it: memory is not read first. */
static bool writes_past(const cpu_gemm *g) {
    return g->m * g->n / (g->gated ? 2 : 1) * (int64_t)dtype_size(g->c_type) >= PAST_BYTES && g->n % PANEL == 0 &&
           (uintptr_t)g->c % 64 == 0 && (const void *)g->residual != g->c;
}

INLINE void block_finish_as(const finished *b, int64_t first, int64_t end, const dtype type, const bool past) {
    if (b->values)
        rows_gate(b, first, end, type, past);
    else
        rows_finish(b, first, end, type, past);
}

static void block_finish(const void *work, int64_t first, int64_t end) {
    const finished *b = work;
    if (b->g->c_type == DTYPE_BF16)
        b->past ? block_finish_as(b, first, end, DTYPE_BF16, true) : block_finish_as(b, first, end, DTYPE_BF16, false);
    else
        b->past ? block_finish_as(b, first, end, DTYPE_F32, true) : block_finish_as(b, first, end, DTYPE_F32, false);
}

/* One piece of a panel's sums. */
typedef struct piece {
    int64_t panel, step, steps;
    const bf16 *converted;
    float *sums;
    const float *values; /* sums of the panel before, where this one gates it */
    bool first, last;
    bool waits; /* for the next panel's gates */
} piece;

/* Slots [slot, slot + PANEL) of a band of `slots`. A finished block is written while the next one is multiplied. */
static void block_run(const job *j, const phase *p, const piece *w, int64_t slots, int64_t slot, finished *last) {
    int64_t column = panel_place(j, w->panel) * PANEL;
    finished b = {.g = j->g, .row_map = j->row_map + slot, .rows = least(slots - slot, PANEL), .column = column, .past = last->past};
    float *sums = w->sums + (w->first && w->last && !w->waits ? slot / PANEL % 2 * PANEL : slot) * PANEL;
    const bf16_aside aside = {block_finish, last, 0, w->last && !w->waits ? last->rows : 0};
    const bf16_left left = {j->planes + slot * STEP, j->offsets + p->first * j->by.layout.steps + w->step, STEP, false};
    b.columns = least(j->g->n - column, PANEL);
    b.sums = sums;
    b.values = w->values ? w->values + slot * PANEL : NULL;
    bf16_block(b.rows > SIDE ? 2 : 1, b.columns > SIDE ? 2 : 1, w->steps, &left, w->converted, PANEL_STEP, sums, PANEL, !w->first, &aside);
    if (w->last && !w->waits) *last = b;
}

static const bf16 *panel_ready(const job *j, int64_t panel) { return (const bf16 *)j->g->b + panel_place(j, panel) * j->by.panel_size; }

/* The band's `slots` slots times panels. converted: the first of them, or NULL. */
static void panels_multiply(const job *j, const phase *p, int64_t slots, int64_t panel, int64_t panels, const bf16 *converted) {
    int64_t steps = p->count * j->by.layout.steps, pieces = most(quotient_up(steps, PIECE), 1), size = quotient_up(steps, pieces);
    finished last = {.past = writes_past(j->g)};
    for (int64_t i = 0, at = 0; i < pieces; i++, at += size) {
        int64_t here = least(size, steps - at), step = p->first * j->by.layout.steps + at;
        bool converts = !converted && !j->by.ready;
        if (converts) panels_convert(j, p, panel, panels, at, here, PIECE * PANEL_STEP, j->converted);
        for (int64_t n = 0; n < panels; n++) {
            const bf16 *whole = converted ? converted + n * j->by.panel_size : panel_ready(j, panel + n);
            float *sums = j->sums + n * sums_size(&j->by);
            piece w = {.panel = panel + n, .step = at, .steps = here, .sums = sums, .first = i == 0, .last = i == pieces - 1};
            w.converted = converts ? j->converted + n * PIECE * PANEL_STEP : whole + step * PANEL_STEP;
            w.waits = j->g->gated && n % 2 == 0;
            if (j->g->gated && n % 2) w.values = sums - sums_size(&j->by);
            for (int64_t slot = 0; slot < slots; slot += PANEL) block_run(j, p, &w, slots, slot, &last);
        }
    }
    block_finish(&last, 0, last.rows);
}

/* A chunk of panels, all their steps; all threads. Rows [k][n] are long: a step of all panels reads them as they lie. */
static void chunk_convert(const job *j, int64_t first, int64_t panels) {
    const blocking *by = &j->by;
    const phase all = {.count = j->g->taps};
    int64_t steps = by->panel_size / PANEL_STEP, part = j->g->kn ? 1 : PIECE, parts = quotient_up(steps, part);
    int64_t together = j->g->kn ? panels : 1;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < panels / together * parts; i++) {
        int64_t step = i % parts * part, panel = i / parts;
        panels_convert(j, &all, first + panel, together, step, least(part, steps - step), by->panel_size,
                       j->converted + panel * by->panel_size + step * PANEL_STEP);
    }
}

/* Bands; all threads. */
static void bands_run(const job *j) {
    const blocking *by = &j->by;
    const bf16_layout *l = &by->layout;
    for (int64_t first = 0; first < by->panels; first += by->chunk) {
        int64_t panels = least(by->chunk, by->panels - first);
        if (!by->ready) chunk_convert(j, first, panels);
#pragma omp for schedule(dynamic)
        for (int64_t band = 0; band < by->bands; band++) {
            int64_t line = band * l->band, lines = least(l->band, l->lines - line);
            for (int64_t i = 0; i < lines + l->y.reach + 1; i++) bf16_layout_pack(j->g, l, line, i, j->planes);
            for (const phase *p = j->phases; p < j->phases + j->phase_count; p++) {
                for (int64_t i = 0; i < lines; i++) bf16_layout_rows(l, p->y, p->x, line, i, j->row_map);
                for (int64_t panel = 0; panel < panels; panel += by->group)
                    panels_multiply(j, p, lines * l->x.pitch, first + panel, by->group,
                                    by->ready ? NULL : j->converted + panel * by->panel_size);
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
