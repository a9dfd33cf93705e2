#version 450
// The products of gemm_half.comp on matrix units (VK_KHR_cooperative_matrix, fp16 in, fp32 sums). gemm_tiles.glsl reads the operands.
//
// A subgroup computes WM x WN results as fragments of FRAG x FRAG. Shared memory keeps rows as they are in memory, with a pitch of one chunk more:
// a fragment's row is two aligned reads of 16 bytes, and 8 neighbouring rows fall into different banks. At the end fragments pass through shared
// memory, because nothing says which thread holds which element.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128; // BM / WM * (BN / WN) * WAVE
layout(constant_id = 1) const uint BM = 128;
layout(constant_id = 2) const uint BN = 128;
layout(constant_id = 3) const uint BK = 32;
layout(constant_id = 4) const uint A_MODE = 0;    // 0 to 4
layout(constant_id = 5) const uint B_MODE = 0;    // 0 to 2
layout(constant_id = 6) const uint WM = 64;       // multiples of FRAG
layout(constant_id = 7) const uint WN = 64;
layout(constant_id = 8) const uint FRAG = 16;     // what the device has: 8 or 16
layout(constant_id = 9) const uint WAVE = 32;     // threads of a subgroup
layout(constant_id = 10) const uint TAIL = 0;
layout(constant_id = 11) const uint FLAGS = 0;

#define TC T0
#define TC_4 T0_4
#include "gemm_shape.glsl"
const bool PAIR_ROWS = B_MODE != 0, K_FIRST = true;
#include "gemm_tiles.glsl"

const uint WAVES_M = BM / WM, WAVES_N = BN / WN, FM = WM / FRAG, FN = WN / FRAG, FC = FRAG / 8;
const uint PITCH = CHUNKS + 1, LINE = WN / 4 + 1, STAGE = FRAG * LINE; // STAGE: a subgroup's FRAG x WN results, in fours
const uint TILES = (BM + BN) * PITCH, STAGES = WAVES_M * WAVES_N * STAGE;
shared uvec4 tile[TILES > STAGES ? TILES : STAGES]; // a[m], then b[n], in chunks

#define SUMS coopmat<float, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseAccumulator>
SUMS acc[FM][FN];

void put_pairs(uint row, uint k, uvec4 first, uvec4 second) // rows k and k + 1 of eight neighbours
{
    [[unroll]] for (uint e = 0; e < 8; e++) tile[(row + e) * PITCH + k / 8][k / 2 % 4] = pair_up(first, second, e);
}

void put()
{
    if (A_KM) {
        [[unroll]] for (uint j = 0; j < LA / 2; j++) put_pairs(tile_column(j, BM), tile_k(j, BM), tile_a(2 * j), tile_a(2 * j + 1));
    } else {
        [[unroll]] for (uint i = 0; i < LA; i++) tile[tile_row(i) * PITCH + tile_chunk()] = tile_a(i);
    }
    if (B_KN) {
        [[unroll]] for (uint j = 0; j < LB / 2; j++) put_pairs(BM + tile_column(j, BN), tile_k(j, BN), tile_b(2 * j), tile_b(2 * j + 1));
    } else {
        [[unroll]] for (uint i = 0; i < LB; i++) tile[(BM + tile_row(i)) * PITCH + tile_chunk()] = rb[i];
    }
}

void multiply(uint wm, uint wn)
{
    [[unroll]] for (uint q = 0; q < BK / FRAG; q++) {
        coopmat<float16_t, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseA> x[FM];
        coopmat<float16_t, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseB> y;
        [[unroll]] for (uint i = 0; i < FM; i++)
            coopMatLoad(x[i], tile, (wm + i * FRAG) * PITCH + q * FC, PITCH, gl_CooperativeMatrixLayoutRowMajor);
        [[unroll]] for (uint j = 0; j < FN; j++) {
            coopMatLoad(y, tile, (BM + wn + j * FRAG) * PITCH + q * FC, PITCH, gl_CooperativeMatrixLayoutColumnMajor);
            [[unroll]] for (uint i = 0; i < FM; i++) acc[i][j] = coopMatMulAdd(x[i], y, acc[i][j]);
        }
    }
}

void main()
{
    uint m0 = tiles_first_row(), n0 = gl_WorkGroupID.y * BN, z = gl_WorkGroupID.z;
    uint wm = gl_SubgroupID % WAVES_M * WM, wn = gl_SubgroupID / WAVES_M * WN;
    [[unroll]] for (uint i = 0; i < FM; i++)
        [[unroll]] for (uint j = 0; j < FN; j++) acc[i][j] = SUMS(0.0);

    tiles_begin(m0, n0, z);
    tiles_fetch();
    put();
    barrier();
    while (tiles_left > 0) {
        tiles_advance();
        tiles_fetch();
        multiply(wm, wn);
        barrier();
        put();
        barrier();
    }

    uint base = gl_SubgroupID * STAGE;
    [[unroll]] for (uint i = 0; i < FM; i++) {
        [[unroll]] for (uint j = 0; j < FN; j++)
            coopMatStore(acc[i][j], tile, base + j * FRAG / 4, LINE, gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        for (uint x = gl_SubgroupInvocationID; x < FRAG * WN / 4; x += WAVE) {
            uint row = x / (WN / 4), four = x % (WN / 4), m = m0 + wm + i * FRAG + row, n = n0 + wn + four * 4;
            if (m >= rows || n >= p.N) continue;
            m = tiles_output(m);
            store_four(m, n, z * p.c_stride, uintBitsToFloat(tile[base + row * LINE + four]), terms_of_four(m, n, z * p.c_stride));
        }
        barrier();
    }
}
