/* Products of operands rounded to bf16, summed in fp32. The files of this folder are built twice: for AVX-512 BF16's dot products, and
   for AMX's tile registers. Both use the layouts of AMX:

   - k goes in steps of STEP. The left operand is kept as planes, one for each step of its k: [slot][STEP] bf16. 16 rows of a tile, at
     whatever slot they begin, are 16 cache lines in a row.
   - A panel is PANEL columns of the right operand. A step of it is two tiles of SIDE columns, each [STEP / 2][SIDE] pairs of bf16 that
     follow each other in k. */
#ifndef VULORA_CPU_BF16_BF16_H
#define VULORA_CPU_BF16_BF16_H

#include "cpu/isa/vec.h"

typedef uint16_t bf16;

enum {
    SIDE = 16,                 /* rows or columns of a tile */
    STEP = 32,                 /* k of a tile */
    TILE_SIZE = SIDE * STEP,   /* bf16 elements of an operand's tile */
    PANEL = 2 * SIDE,          /* columns, and rows, of a block of sums */
    PANEL_STEP = PANEL * STEP, /* bf16 elements of a panel for each step */
    MOST_STRIDE = 4            /* of a convolution whose backward-data product this is */
};

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t a, int64_t unit) { return quotient_up(a, unit) * unit; }
/* bf16 elements from plane to plane: never a multiple of the 4 KiB after which the L1 cache's sets repeat. */
INLINE int64_t plane_size(int64_t slots) { return (round_up(slots, 64) + SIDE) * STEP; }

/* Rounds to nearest even; `low` first. */
INLINE __m512i bf16_join(vec low, vec high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
/* Lane i: low[i] in its lower half, high[i] in the upper. */
INLINE __m512i bf16_pairs(vec low, vec high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                           18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, bf16_join(low, high));
}
/* The first count (1..16) floats, zeros behind. */
INLINE vec vec_load_first(const float *p, int64_t count) { return (vec)_mm512_maskz_loadu_ps((__mmask16)(0xffffu >> (16 - count)), p); }
/* STEP floats, of which `count` are there (1..STEP), as bf16. */
INLINE __m512i bf16_load_floats(const float *p, int64_t count) {
    if (count == STEP) return bf16_join(vec_load(p), vec_load(p + 16));
    return bf16_join(vec_load_first(p, least(count, 16)), count > 16 ? vec_load_first(p + 16, count - 16) : vec_splat(0));
}
/* The same from activations, fp32 or bf16. */
INLINE __m512i bf16_load(const void *data, const dtype type, int64_t at, int64_t count) {
    if (type != DTYPE_BF16) return bf16_load_floats((const float *)data + at, count);
    const bf16 *p = (const bf16 *)data + at;
    return count == STEP ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(0xffffffffu >> (STEP - count), p);
}
/* The first count (1..16) of them as bf16's values. */
INLINE vec bf16_load_first(const void *data, const dtype type, int64_t at, int64_t count) {
    __mmask16 mask = (__mmask16)(0xffffu >> (16 - count));
    __m256i stored = type == DTYPE_BF16 ? _mm256_maskz_loadu_epi16(mask, (const bf16 *)data + at)
                                        : (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, (const float *)data + at));
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(stored), 16);
}
INLINE void bf16_store(void *data, const dtype type, int64_t at, __mmask16 mask, vec v) {
    if (type == DTYPE_BF16)
        _mm256_mask_storeu_epi16((bf16 *)data + at, mask, (__m256i)_mm512_cvtneps_pbh((__m512)v));
    else
        _mm512_mask_storeu_ps((float *)data + at, mask, (__m512)v);
}

/* ---- tile.c ---- */

#define bf16_begin CPU_NAMED(cpu_bf16_begin)
#define bf16_end CPU_NAMED(cpu_bf16_end)
#define bf16_block CPU_NAMED(cpu_bf16_block)
/* Around blocks, in every thread. */
void bf16_begin(void);
void bf16_end(void);
/* A left operand: row i of step s begins at data + offsets[s] + i * pitch. */
typedef struct bf16_left {
    const bf16 *data;
    const int64_t *offsets;
    int64_t pitch;
    bool stays; /* in the L1 cache, and the right operand passes by; else the other way round */
} bf16_left;
/* Parts [first, end) of some work that vector units and memory do meanwhile: run(work, ...) for all of them in order. */
typedef struct bf16_aside {
    void (*run)(const void *work, int64_t first, int64_t end);
    const void *work;
    int64_t first, end;
} bf16_aside;
/* c [row_tiles * SIDE, column_tiles * SIDE] (+)= the sum over steps; row and column tiles 1 or 2. Step s of the right operand is at
   b + s * b_step, its tiles TILE_SIZE apart. aside: or NULL. */
void bf16_block(int row_tiles, int column_tiles, int64_t steps, const bf16_left *a, const bf16 *b, int64_t b_step, float *c, int64_t ldc,
                bool add, const bf16_aside *aside);

/* The same for whole panels of columns, c [row_tiles * SIDE, panels * PANEL]; panel j of b at b + j * steps * PANEL_STEP. */
#define bf16_panels CPU_NAMED(cpu_bf16_panels)
void bf16_panels(int row_tiles, int64_t panels, int64_t steps, const bf16_left *a, const bf16 *b, float *c, int64_t ldc,
                 const bf16_aside *aside);
/* Part i of `count` of some work; of none where there is none. */
INLINE bf16_aside bf16_aside_part(const bf16_aside *a, int64_t i, int64_t count) {
    if (!a) return (bf16_aside){0};
    int64_t all = a->end - a->first;
    return (bf16_aside){a->run, a->work, a->first + all * i / count, a->first + all * (i + 1) / count};
}
INLINE void bf16_aside_run(const bf16_aside *a) {
    if (a->first < a->end) a->run(a->work, a->first, a->end);
}

/* ---- pixels.c ---- */

/* Where one dimension of the left operand lies: source pixel i in phase (i + before) % step, cell (i + before) / step of `pitch` cells.
   All other cells are zeros. */
typedef struct bf16_axis {
    int64_t out, source; /* sizes */
    int64_t pitch;       /* cells of one line, or lines of one image: behind the last come the leading zeros of the next */
    int before, step;
    int out_step; /* pixels of the result are computed in that many phases */
    int reach;    /* the farthest cell that one of the result sees, counted from its own */
} bf16_axis;

typedef struct bf16_layout {
    bf16_axis y, x;
    int64_t images, steps; /* k in steps */
    int64_t lines;         /* of all images */
    int64_t band;          /* lines of the result at a time */
    int64_t phase_slots, slots, plane;
} bf16_layout;

/* What the rows of a result phase see: B's tap, slots from a row's own. */
typedef struct bf16_tap {
    int tap;
    int64_t slots;
} bf16_tap;

#define bf16_layout_serves CPU_NAMED(cpu_bf16_layout_serves)
#define bf16_layout_of CPU_NAMED(cpu_bf16_layout_of)
#define bf16_layout_cut CPU_NAMED(cpu_bf16_layout_cut)
#define bf16_layout_taps CPU_NAMED(cpu_bf16_layout_taps)
#define bf16_layout_pack CPU_NAMED(cpu_bf16_layout_pack)
#define bf16_layout_rows CPU_NAMED(cpu_bf16_layout_rows)
bool bf16_layout_serves(const cpu_gemm *g);
/* All lines in one band. */
bf16_layout bf16_layout_of(const cpu_gemm *g);
void bf16_layout_cut(bf16_layout *l, int64_t band);
/* Result phase (py, px); taps: room for g->taps. Returns how many there are. */
int bf16_layout_taps(const cpu_gemm *g, const bf16_layout *l, int py, int px, bf16_tap *taps);
/* Line i (of band + reach + 1) of the band that begins at line `first`, into planes. */
void bf16_layout_pack(const cpu_gemm *g, const bf16_layout *l, int64_t first, int64_t i, bf16 *planes);
/* Line i of the band: the rows of C at its slots in that phase, -1 where there is none. */
void bf16_layout_rows(const bf16_layout *l, int py, int px, int64_t first, int64_t i, int32_t *rows);

/* ---- right.c ---- */

/* A right operand as it is stored: [n][k], or with kn [k][n], its rows `pitch` elements apart. */
typedef struct bf16_right {
    const void *data;
    dtype type;
    bool kn;
    int64_t n, k, pitch;
} bf16_right;

#define bf16_panel CPU_NAMED(cpu_bf16_panel)
/* k, k + 1, ... k + STEP - 1 for PANEL columns from `column` on, to one step of a panel. Zeros behind the last k and, to a whole tile,
   behind the last column. */
void bf16_panel(const bf16_right *b, int64_t k, int64_t column, bf16 *out);

/* ---- pack.c: weights once and for all ---- */

#define bf16_pack_bytes CPU_NAMED(cpu_bf16_pack_bytes)
#define bf16_pack CPU_NAMED(cpu_bf16_pack)
#define bf16_turn CPU_NAMED(cpu_bf16_turn)
/* [panel of outputs][tap][step of inputs][PANEL_STEP]: panels of the forward product, as it sums over them. */
size_t bf16_pack_bytes(const cpu_weights *w);
void bf16_pack(const cpu_weights *w, void *out);
/* One of these pieces, PANEL outputs by STEP inputs, as a step of a panel of the backward product: PANEL inputs, STEP outputs. */
void bf16_turn(const bf16 *piece, bf16 *out);

/* ---- gemm.c, weight_grad.c, attention.c, attention_grad.c ---- */

#define bf16_gemm_scratch CPU_NAMED(cpu_bf16_gemm_scratch)
#define bf16_gemm_run CPU_NAMED(cpu_bf16_gemm_run)
size_t bf16_gemm_scratch(const cpu_gemm *g, int threads);
void bf16_gemm_run(const cpu_gemm *g, int threads, void *scratch);

#define bf16_weight_grad_scratch CPU_NAMED(cpu_bf16_weight_grad_scratch)
#define bf16_weight_grad_run CPU_NAMED(cpu_bf16_weight_grad_run)
/* Of linear layers. */
size_t bf16_weight_grad_scratch(const cpu_weight_grad *g, int threads);
void bf16_weight_grad_run(const cpu_weight_grad *g, int threads, void *scratch);

#define bf16_attention_scratch CPU_NAMED(cpu_bf16_attention_scratch)
#define bf16_attention_run CPU_NAMED(cpu_bf16_attention_run)
#define bf16_attention_grad_scratch CPU_NAMED(cpu_bf16_attention_grad_scratch)
#define bf16_attention_grad_run CPU_NAMED(cpu_bf16_attention_grad_run)
size_t bf16_attention_scratch(const cpu_attention *a, int threads);
void bf16_attention_run(const cpu_attention *a, int threads, void *scratch);
size_t bf16_attention_grad_scratch(const cpu_attention *a, int threads);
void bf16_attention_grad_run(const cpu_attention *a, int threads, void *scratch);

#endif
