/* The left operand as bf16: once for all columns, with zeros around each image, so that a row of the result sees through each tap the slot
   at a constant distance from its own, and tiles need no gathering. A strided convolution's source lies in stride x stride phases; the
   result of the backward one is computed in as many, each of which sees only some of the taps. */
#include "cpu/bf16/bf16.h"

static bf16_axis axis_forward(int64_t out, int64_t source, int kernel, int stride, int pad) {
    bf16_axis a = {.out = out, .source = source, .before = pad, .step = stride, .out_step = 1, .reach = (kernel - 1) / stride};
    int64_t shared = stride == 1 ? pad : 0; /* zeros behind a line that are also those before the next */
    a.pitch = most(quotient_up(source + pad, stride), out + a.reach - shared);
    return a;
}

static bf16_axis axis_backward(int64_t out, int64_t source, int kernel, int stride, int pad) {
    int before = (kernel - 1 - pad + stride - 1) / stride, behind = (stride - 1 + pad) / stride;
    bf16_axis a = {.out = out, .source = source, .before = before, .step = 1, .out_step = stride, .reach = behind + before};
    a.pitch = most(source + before, quotient_up(out, stride) + behind);
    return a;
}

bool bf16_layout_serves(const cpu_gemm *g) {
    return !g->gather || !g->gather->backward || (g->gather->pad < g->gather->kernel && g->gather->stride <= MOST_STRIDE);
}

bf16_layout bf16_layout_of(const cpu_gemm *g) {
    const cpu_gather *s = g->gather;
    bf16_layout l = {.images = 1, .steps = quotient_up(g->k, STEP)};
    if (!s) {
        l.y = axis_forward(g->m, g->m, 1, 1, 0);
        l.x = axis_forward(1, 1, 1, 1, 0);
    } else {
        bf16_axis (*axis)(int64_t, int64_t, int, int, int) = s->backward ? axis_backward : axis_forward;
        l.images = g->m / (s->height * s->width);
        l.y = axis(s->height, s->source_height, s->kernel, s->stride, s->pad);
        l.x = axis(s->width, s->source_width, s->kernel, s->stride, s->pad);
    }
    l.lines = l.images * l.y.pitch;
    bf16_layout_cut(&l, l.lines);
    return l;
}

void bf16_layout_cut(bf16_layout *l, int64_t band) {
    l->band = band;
    l->phase_slots = (band + l->y.reach + 1) * l->x.pitch;
    l->slots = l->phase_slots * l->y.step * l->x.step + PANEL; /* blocks read whole tiles */
    l->plane = plane_size(l->slots);
}

/* Cells from a result pixel's own to what it sees through tap t in result phase p; -1: nothing. phase: of the source. */
static int axis_see(const bf16_axis *a, const cpu_gather *s, int p, int t, int *phase) {
    *phase = 0;
    if (!s->backward) {
        *phase = t % a->step;
        return t / a->step;
    }
    int distance = p + s->pad - t;
    return distance % a->out_step ? -1 : distance / a->out_step + a->before;
}

int bf16_layout_taps(const cpu_gemm *g, const bf16_layout *l, int py, int px, bf16_tap *taps) {
    if (!g->gather) {
        taps[0] = (bf16_tap){0, 0};
        return 1;
    }
    int count = 0, kernel = g->gather->kernel;
    for (int tap = 0; tap < g->taps; tap++) {
        int fy, fx, y = axis_see(&l->y, g->gather, py, tap / kernel, &fy), x = axis_see(&l->x, g->gather, px, tap % kernel, &fx);
        if (y < 0 || x < 0) continue;
        taps[count++] = (bf16_tap){tap, (fy * l->x.step + fx) * l->phase_slots + y * l->x.pitch + x};
    }
    return count;
}

/* Row `row` of A, or with -1 zeros. */
INLINE void slot_pack_as(const cpu_gemm *g, const dtype type, const bf16_layout *l, int64_t row, bf16 *slot) {
    int64_t at = row * g->lda;
    for (int64_t k = 0; k < g->k; k += STEP, slot += l->plane)
        _mm512_storeu_si512(slot, row < 0 ? _mm512_setzero_si512() : bf16_load(g->a, type, at + k, least(g->k - k, STEP)));
}

static void slot_pack(const cpu_gemm *g, const bf16_layout *l, int64_t row, bf16 *slot) {
    if (g->a_type == DTYPE_BF16)
        slot_pack_as(g, DTYPE_BF16, l, row, slot);
    else
        slot_pack_as(g, DTYPE_F32, l, row, slot);
}

void bf16_layout_pack(const cpu_gemm *g, const bf16_layout *l, int64_t first, int64_t i, bf16 *planes) {
    int64_t line = first + i, image = line / l->y.pitch;
    if (!g->gather) {
        slot_pack(g, l, line < l->lines ? line : -1, planes + i * STEP);
        return;
    }
    for (int phase = 0; phase < l->y.step * l->x.step; phase++) {
        bf16 *slot = planes + (phase * l->phase_slots + i * l->x.pitch) * STEP;
        int64_t y = line % l->y.pitch * l->y.step + phase / l->x.step - l->y.before;
        bool inside = line < l->lines && y >= 0 && y < l->y.source;
        for (int64_t cell = 0; cell < l->x.pitch; cell++, slot += STEP) {
            int64_t x = cell * l->x.step + phase % l->x.step - l->x.before, row = (image * l->y.source + y) * l->x.source + x;
            slot_pack(g, l, inside && x >= 0 && x < l->x.source ? row : -1, slot);
        }
    }
}

void bf16_layout_rows(const bf16_layout *l, int py, int px, int64_t first, int64_t i, int32_t *rows) {
    int64_t line = first + i, image = line / l->y.pitch, y = line % l->y.pitch * l->y.out_step + py;
    for (int64_t cell = 0; cell < l->x.pitch; cell++) {
        int64_t x = cell * l->x.out_step + px;
        bool inside = line < l->lines && y < l->y.out && x < l->x.out;
        rows[i * l->x.pitch + cell] = inside ? (int32_t)((image * l->y.out + y) * l->x.out + x) : -1;
    }
}
