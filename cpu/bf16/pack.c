/* Weights rounded to bf16 and laid out once, so that a product reads one stream of memory and converts nothing. Kept as they are stored,
   a panel's rows are that many streams, more than a processor fetches ahead; at small images that took most of the time. */
#include "cpu/bf16/bf16.h"

static int64_t panel_steps(const cpu_weights *w) { return w->taps * quotient_up(w->inputs, STEP); }

size_t bf16_pack_bytes(const cpu_weights *w) {
    return (size_t)(quotient_up(w->outputs, PANEL) * panel_steps(w) * PANEL_STEP) * sizeof(bf16);
}

void bf16_pack(const cpu_weights *w, void *out) {
    bf16 *at = out;
    for (int64_t output = 0; output < w->outputs; output += PANEL)
        for (int tap = 0; tap < w->taps; tap++) {
            size_t first = (size_t)(tap * w->outputs * w->inputs) * dtype_size(w->type);
            const bf16_right b = {(const char *)w->data + first, w->type, false, w->outputs, w->inputs, w->inputs};
            for (int64_t k = 0; k < w->inputs; k += STEP, at += PANEL_STEP) {
                if (w->outputs - output <= SIDE) memset(at + TILE_SIZE, 0, TILE_SIZE * sizeof *at);
                bf16_panel(&b, k, output, at);
            }
        }
}

/* A tile is [pair of inputs][output]; transposed, a row of inputs for each output. Two rows, taken by turns, are a row of pairs. */
void bf16_turn(const bf16 *piece, bf16 *out) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3,
                                         34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int side = 0; side < 2; side++) {
        vec rows[SIDE];
        UNROLL for (int i = 0; i < SIDE; i++) rows[i] = (vec)_mm512_loadu_si512(piece + side * TILE_SIZE + i * 2 * SIDE);
        vec_transpose(rows);
        UNROLL for (int i = 0; i < SIDE; i += 2) {
            bf16 *to = out + (side * SIDE + i) / 2 * 2 * SIDE;
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16((__m512i)rows[i], low, (__m512i)rows[i + 1]));
            _mm512_storeu_si512(to + TILE_SIZE, _mm512_permutex2var_epi16((__m512i)rows[i], high, (__m512i)rows[i + 1]));
        }
    }
}
