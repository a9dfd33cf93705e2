/* Winograd's F(4x4, 3x3) (Lavin & Gray 2015): a tile of 4x4 outputs of a 3x3 convolution from 6x6 inputs by 36 products instead of 144,
   Y = A^T [ (G w G^T) * (B^T d B) ] A. The interpolation points are 0, +-3/4, +-3/2 and infinity: with exact squares and cubes in fp32
   like the usual 0, +-1, +-2, at the same number of operations, and half the rounding error. G is left unnormalized, so that weights,
   transformed most often, take the fewest operations; B carries the factors. */
#ifndef VULORA_CPU_ISA_WINOGRAD_H
#define VULORA_CPU_ISA_WINOGRAD_H

#include "cpu/isa/vec.h"

enum {
    TILE_OUT = 4, /* side of a tile of the result */
    TILE_IN = 6,  /* side of the source pixels it sees, and of its transform */
    PLANES = TILE_IN * TILE_IN,
    DEPTH = 32,     /* input channels whose weights are transformed at a time; they stay in the L2 cache */
    SLAB = 8,       /* of them lie together in one plane: writing 36 planes then touches few pages */
    PLANE_PAD = 16, /* floats; planes a multiple of 4 KiB apart would share one set of the L1 cache */
    SLAB_PLANE = SLAB * TILE_COLUMNS + PLANE_PAD,
    SLAB_SIZE = PLANES * SLAB_PLANE,
    PANEL_SIZE = DEPTH / SLAB * SLAB_SIZE
};

#define POINT_A 0.75f
#define POINT_B 1.5f
#define POINT_A2 (POINT_A * POINT_A)
#define POINT_B2 (POINT_B * POINT_B)

#define isa_winograd_weights CPU_NAMED(cpu_winograd_weights)
/* G w G^T for input channels [k0, k0 + depth) and output channels [n0, n0 + vectors * LANES); depth a multiple of 8, at most DEPTH.
   u: [DEPTH / SLAB] slabs of [PLANES][SLAB, TILE_COLUMNS], planes SLAB_PLANE apart. stage: WEIGHT_STAGE bytes. */
void isa_winograd_weights(const cpu_gemm *g, int64_t k0, int64_t depth, int64_t n0, int vectors, float *u, void *stage);
enum { WEIGHT_STAGE = 9 * 64 * TILE_COLUMNS };

#define isa_winograd_prefetch CPU_NAMED(cpu_winograd_prefetch)
/* While the products of plane number `plane` of input channels [k0, k0 + DEPTH) are made: asks for a part of the weights of `columns`
   output channels that are needed next. */
void isa_winograd_prefetch(const cpu_gemm *g, int64_t k0, int64_t n0, int64_t columns, int plane);

#endif
