/* The block of sums that everything in this folder is made of: 32 x 32, in AMX's tiles or in vector registers. */
#include "cpu/bf16/bf16.h"

#ifdef __AMX_BF16__
enum { LINE = STEP * sizeof(bf16) };

/* Intel's manual, TILECFG: palette 1, then the bytes of a row and the rows of each of eight tiles. In memory that is always there: gcc 12
   does not tell its optimizer that the instruction reads all of it. Nor that tile loads read memory: keep them behind calls. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} CONFIG = {
    .palette = 1, .bytes = {LINE, LINE, LINE, LINE, LINE, LINE, LINE, LINE}, .rows = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE}};

void bf16_begin(void) { _tile_loadconfig(&CONFIG); }
void bf16_end(void) { _tile_release(); }

/* gcc's intrinsics take numbers of tiles literally. What passes by does not drive the rest out of the L1 cache: a third faster. */
#define LOAD(tile, passes, from, pitch) \
    do { \
        if (passes) \
            _tile_stream_loadd(tile, from, pitch); \
        else \
            _tile_loadd(tile, from, pitch); \
    } while (0)

/* Tiles 0..3: sums; 4, 5: left operand; 6, 7: right. */
INLINE void block_run(const bool stays, int row_tiles, int column_tiles, int64_t steps, const bf16_left *left, const bf16 *b,
                      int64_t b_step, float *c, int64_t ldc, bool add, const bf16_aside *aside) {
    int64_t first = aside ? aside->first : 0, parts = aside ? aside->end - first : 0, done = 0;
    const int64_t *offsets = left->offsets;
    const bf16 *a = left->data, *a_below = a + SIDE * left->pitch;
    size_t pitch = (size_t)ldc * sizeof *c, a_pitch = (size_t)left->pitch * sizeof *a;
    float *below = c + SIDE * ldc;
    if (add) {
        _tile_loadd(0, c, pitch);
        if (column_tiles > 1) _tile_loadd(1, c + SIDE, pitch);
        if (row_tiles > 1) _tile_loadd(2, below, pitch);
        if (row_tiles > 1 && column_tiles > 1) _tile_loadd(3, below + SIDE, pitch);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    if (row_tiles > 1 && column_tiles > 1) {
        for (int64_t s = 0; s < steps; s++, b += b_step) {
            LOAD(6, stays, b, LINE);
            LOAD(4, !stays, a + offsets[s], a_pitch);
            _tile_dpbf16ps(0, 4, 6);
            LOAD(7, stays, b + TILE_SIZE, LINE);
            _tile_dpbf16ps(1, 4, 7);
            LOAD(5, !stays, a_below + offsets[s], a_pitch);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            int64_t due = parts * (s + 1) / steps;
            if (due > done) aside->run(aside->work, first + done, first + due);
            done = due;
        }
    } else if (row_tiles > 1) {
        for (int64_t s = 0; s < steps; s++, b += b_step) {
            LOAD(6, stays, b, LINE);
            LOAD(4, !stays, a + offsets[s], a_pitch);
            _tile_dpbf16ps(0, 4, 6);
            LOAD(5, !stays, a_below + offsets[s], a_pitch);
            _tile_dpbf16ps(2, 5, 6);
        }
    } else if (column_tiles > 1) {
        for (int64_t s = 0; s < steps; s++, b += b_step) {
            LOAD(4, !stays, a + offsets[s], a_pitch);
            LOAD(6, stays, b, LINE);
            _tile_dpbf16ps(0, 4, 6);
            LOAD(7, stays, b + TILE_SIZE, LINE);
            _tile_dpbf16ps(1, 4, 7);
        }
    } else {
        for (int64_t s = 0; s < steps; s++, b += b_step) {
            LOAD(4, !stays, a + offsets[s], a_pitch);
            LOAD(6, stays, b, LINE);
            _tile_dpbf16ps(0, 4, 6);
        }
    }
    _tile_stored(0, c, pitch);
    if (column_tiles > 1) _tile_stored(1, c + SIDE, pitch);
    if (row_tiles > 1) _tile_stored(2, below, pitch);
    if (row_tiles > 1 && column_tiles > 1) _tile_stored(3, below + SIDE, pitch);
    if (done < parts) aside->run(aside->work, first + done, first + parts);
}

void bf16_block(int row_tiles, int column_tiles, int64_t steps, const bf16_left *left, const bf16 *b, int64_t b_step, float *c, int64_t ldc,
                bool add, const bf16_aside *aside) {
    if (left->stays)
        block_run(true, row_tiles, column_tiles, steps, left, b, b_step, c, ldc, add, aside);
    else
        block_run(false, row_tiles, column_tiles, steps, left, b, b_step, c, ldc, add, aside);
}

/* Two row tiles and one or two steps: the left operand stays in tiles 0..3, the right one passes through 4 and 5. */
static void panels_run(int64_t panels, int64_t steps, const bf16_left *left, const bf16 *b, float *c, int64_t ldc,
                       const bf16_aside *aside) {
    size_t pitch = (size_t)ldc * sizeof *c, a_pitch = (size_t)left->pitch * sizeof *b;
    const bf16 *second = left->data + left->offsets[steps - 1];
    _tile_loadd(0, left->data + left->offsets[0], a_pitch);
    _tile_loadd(1, left->data + left->offsets[0] + SIDE * left->pitch, a_pitch);
    _tile_loadd(2, second, a_pitch);
    _tile_loadd(3, second + SIDE * left->pitch, a_pitch);
    for (int64_t j = 0; j < 2 * panels; j++, c += SIDE) {
        const bf16 *from = b + j / 2 * steps * PANEL_STEP + j % 2 * TILE_SIZE;
        const bf16_aside part = bf16_aside_part(aside, j, 2 * panels);
        _tile_zero(6);
        _tile_zero(7);
        _tile_stream_loadd(4, from, LINE);
        _tile_dpbf16ps(6, 0, 4);
        _tile_dpbf16ps(7, 1, 4);
        if (steps > 1) {
            _tile_stream_loadd(5, from + PANEL_STEP, LINE);
            _tile_dpbf16ps(6, 2, 5);
            _tile_dpbf16ps(7, 3, 5);
        }
        bf16_aside_run(&part);
        _tile_stored(6, c, pitch);
        _tile_stored(7, c + SIDE * ldc, pitch);
    }
}

void bf16_panels(int row_tiles, int64_t panels, int64_t steps, const bf16_left *a, const bf16 *b, float *c, int64_t ldc,
                 const bf16_aside *aside) {
    if (row_tiles == 2 && steps <= 2) {
        panels_run(panels, steps, a, b, c, ldc, aside);
        return;
    }
    for (int64_t j = 0; j < panels; j++, b += steps * PANEL_STEP) {
        const bf16_aside part = bf16_aside_part(aside, j, panels);
        bf16_block(row_tiles, 2, steps, a, b, PANEL_STEP, c + j * PANEL, ldc, false, &part);
    }
}
#else
void bf16_begin(void) {}
void bf16_end(void) {}

enum { ROWS = 8 }; /* 8 rows x 2 vectors of sums, 32 registers */

INLINE void rows_run(const int vectors, int64_t steps, const bf16 *a, const bf16_left *from, const bf16 *b, int64_t b_step, float *c,
                     int64_t ldc, bool add) {
    __m512 sum[ROWS][2];
    UNROLL for (int i = 0; i < ROWS; i++) {
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + j * SIDE) : _mm512_setzero_ps();
    }
    for (int64_t s = 0; s < steps; s++, b += b_step) {
        const bf16 *left = a + from->offsets[s];
        for (int pair = 0; pair < STEP / 2; pair++) {
            __m512bh w[2];
            UNROLL for (int j = 0; j < vectors; j++) w[j] = (__m512bh)_mm512_loadu_si512(b + j * TILE_SIZE + pair * 2 * SIDE);
            UNROLL for (int i = 0; i < ROWS; i++) {
                int32_t two;
                memcpy(&two, left + i * from->pitch + pair * 2, sizeof two);
                __m512bh x = (__m512bh)_mm512_set1_epi32(two);
                UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], x, w[j]);
            }
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) { UNROLL for (int j = 0; j < vectors; j++) _mm512_storeu_ps(c + i * ldc + j * SIDE, sum[i][j]); }
}

void bf16_block(int row_tiles, int column_tiles, int64_t steps, const bf16_left *left, const bf16 *b, int64_t b_step, float *c, int64_t ldc,
                bool add, const bf16_aside *aside) {
    for (int row = 0; row < row_tiles * SIDE; row += ROWS) {
        if (column_tiles > 1)
            rows_run(2, steps, left->data + row * left->pitch, left, b, b_step, c + row * ldc, ldc, add);
        else
            rows_run(1, steps, left->data + row * left->pitch, left, b, b_step, c + row * ldc, ldc, add);
    }
    if (aside && aside->first < aside->end) aside->run(aside->work, aside->first, aside->end);
}

void bf16_panels(int row_tiles, int64_t panels, int64_t steps, const bf16_left *a, const bf16 *b, float *c, int64_t ldc,
                 const bf16_aside *aside) {
    for (int64_t j = 0; j < panels; j++, b += steps * PANEL_STEP) {
        const bf16_aside part = bf16_aside_part(aside, j, panels);
        bf16_block(row_tiles, 2, steps, a, b, PANEL_STEP, c + j * PANEL, ldc, false, &part);
    }
}
#endif
