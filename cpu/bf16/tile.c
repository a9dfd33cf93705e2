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

/* Tiles 0..3: sums; 4, 5: left operand; 6, 7: right. gcc's intrinsics take numbers of tiles literally. The left operand streams by,
   without driving the right one out of the L1 cache: a third faster. */
void bf16_block(int row_tiles, int column_tiles, int64_t steps, const bf16 *a, const int64_t *offsets, const bf16 *b, int64_t b_step,
                float *c, int64_t ldc, bool add) {
    size_t pitch = (size_t)ldc * sizeof *c;
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
            _tile_loadd(6, b, LINE);
            _tile_stream_loadd(4, a + offsets[s], LINE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + TILE_SIZE, LINE);
            _tile_dpbf16ps(1, 4, 7);
            _tile_stream_loadd(5, a + offsets[s] + TILE_SIZE, LINE);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    } else if (row_tiles > 1) {
        for (int64_t s = 0; s < steps; s++, b += b_step) {
            _tile_loadd(6, b, LINE);
            _tile_stream_loadd(4, a + offsets[s], LINE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_stream_loadd(5, a + offsets[s] + TILE_SIZE, LINE);
            _tile_dpbf16ps(2, 5, 6);
        }
    } else if (column_tiles > 1) {
        for (int64_t s = 0; s < steps; s++, b += b_step) {
            _tile_stream_loadd(4, a + offsets[s], LINE);
            _tile_loadd(6, b, LINE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + TILE_SIZE, LINE);
            _tile_dpbf16ps(1, 4, 7);
        }
    } else {
        for (int64_t s = 0; s < steps; s++, b += b_step) {
            _tile_stream_loadd(4, a + offsets[s], LINE);
            _tile_loadd(6, b, LINE);
            _tile_dpbf16ps(0, 4, 6);
        }
    }
    _tile_stored(0, c, pitch);
    if (column_tiles > 1) _tile_stored(1, c + SIDE, pitch);
    if (row_tiles > 1) _tile_stored(2, below, pitch);
    if (row_tiles > 1 && column_tiles > 1) _tile_stored(3, below + SIDE, pitch);
}
#else
void bf16_begin(void) {}
void bf16_end(void) {}

enum { ROWS = 8 }; /* 8 rows x 2 vectors of sums, 32 registers */

INLINE void rows_run(const int vectors, int64_t steps, const bf16 *a, const int64_t *offsets, const bf16 *b, int64_t b_step, float *c,
                     int64_t ldc, bool add) {
    __m512 sum[ROWS][2];
    UNROLL for (int i = 0; i < ROWS; i++) {
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + j * SIDE) : _mm512_setzero_ps();
    }
    for (int64_t s = 0; s < steps; s++, b += b_step) {
        const bf16 *left = a + offsets[s];
        for (int pair = 0; pair < STEP / 2; pair++) {
            __m512bh w[2];
            UNROLL for (int j = 0; j < vectors; j++) w[j] = (__m512bh)_mm512_loadu_si512(b + j * TILE_SIZE + pair * 2 * SIDE);
            UNROLL for (int i = 0; i < ROWS; i++) {
                int32_t two;
                memcpy(&two, left + i * STEP + pair * 2, sizeof two);
                __m512bh x = (__m512bh)_mm512_set1_epi32(two);
                UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], x, w[j]);
            }
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) { UNROLL for (int j = 0; j < vectors; j++) _mm512_storeu_ps(c + i * ldc + j * SIDE, sum[i][j]); }
}

void bf16_block(int row_tiles, int column_tiles, int64_t steps, const bf16 *a, const int64_t *offsets, const bf16 *b, int64_t b_step,
                float *c, int64_t ldc, bool add) {
    for (int row = 0; row < row_tiles * SIDE; row += ROWS) {
        if (column_tiles > 1)
            rows_run(2, steps, a + row * STEP, offsets, b, b_step, c + row * ldc, ldc, add);
        else
            rows_run(1, steps, a + row * STEP, offsets, b, b_step, c + row * ldc, ldc, add);
    }
}
#endif
