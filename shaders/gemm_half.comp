#version 450
// The products of gemm.comp for half-float operands of regular size, on vector units: fp16 in memory, fp32 sums. gemm_tiles.glsl reads the
// operands. A thread computes 8 x 8 results as four 4 x 4 blocks half a tile apart, so that all shared reads are 16 bytes and without bank conflicts:
//              tc*4..+3   BN/2+tc*4..+3
//   tr*4..+3      [4x4]      [4x4]
//   BM/2+tr*4     [4x4]      [4x4]
// One shared buffer, two barriers a step; while a tile is multiplied the next one is on its way to registers.
//
// PAIRS 1: shared memory holds (k, k + 1) words of halfs, and multiply-adds take halfs as they are (v_fma_mix_f32: RDNA 1 and 2).
// PAIRS 0: it holds floats, converted once each on the way in: processors without such an instruction, or where it costs the second issue slot.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64; // BM / 8 * (BN / 8)
layout(constant_id = 1) const uint BM = 64;      // 64 or 128
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint BK = 16;      // BM * BK and BN * BK multiples of 8 (16, PAIRS and [k][...]) * THREADS
layout(constant_id = 4) const uint A_MODE = 0;   // 0 to 4
layout(constant_id = 5) const uint B_MODE = 0;   // 0 to 2
layout(constant_id = 6) const uint PAIRS = 0;
layout(constant_id = 7) const uint TAIL = 0;
layout(constant_id = 8) const uint FLAGS = 0;

#define TC T0
#define TC_4 T0_4
#include "gemm_shape.glsl"
const bool PAIR_ROWS = PAIRS != 0, K_FIRST = false;
#include "gemm_tiles.glsl"

const uint RT = BM / 8, CT = BN / 8;           // threads down and across
const uint ROWS = PAIRS != 0 ? BK / 2 : BK;    // of shared memory
const uint PA = BM + 4, PB = BN + 4, SB = ROWS * PA;
shared uint tile[ROWS * (PA + PB)];            // a[k][m], then b[k][n], as float bits or pairs of k
float acc[8][8];

void put_two(uint at, uint pitch, uint k, uint w) // k even; w: two neighbours along k
{
    if (PAIRS != 0) {
        tile[at + k / 2 * pitch] = w;
    } else {
        vec2 h = unpackHalf2x16(w);
        tile[at + k * pitch] = floatBitsToUint(h.x);
        tile[at + (k + 1) * pitch] = floatBitsToUint(h.y);
    }
}

void put_eight(uint at, uvec4 w) // neighbours across k
{
    [[unroll]] for (uint e = 0; e < 4; e++) {
        vec2 h = unpackHalf2x16(w[e]);
        tile[at + e * 2] = floatBitsToUint(h.x);
        tile[at + e * 2 + 1] = floatBitsToUint(h.y);
    }
}

void put_pairs(uint at, uvec4 k, uvec4 next)
{
    [[unroll]] for (uint e = 0; e < 8; e++) tile[at + e] = pair_up(k, next, e);
}

void put()
{
    if (A_KM && PAIRS != 0) {
        [[unroll]] for (uint j = 0; j < LA / 2; j++)
            put_pairs(tile_k(j, BM) / 2 * PA + tile_column(j, BM), tile_a(2 * j), tile_a(2 * j + 1));
    } else if (A_KM) {
        [[unroll]] for (uint j = 0; j < LA; j++) put_eight(tile_k(j, BM) * PA + tile_column(j, BM), tile_a(j));
    } else {
        [[unroll]] for (uint i = 0; i < LA; i++) {
            uvec4 w = tile_a(i);
            [[unroll]] for (uint j = 0; j < 4; j++) put_two(tile_row(i), PA, tile_chunk() * 8 + j * 2, w[j]);
        }
    }
    if (B_KN && PAIRS != 0) {
        [[unroll]] for (uint j = 0; j < LB / 2; j++)
            put_pairs(SB + tile_k(j, BN) / 2 * PB + tile_column(j, BN), tile_b(2 * j), tile_b(2 * j + 1));
    } else if (B_KN) {
        [[unroll]] for (uint j = 0; j < LB; j++) put_eight(SB + tile_k(j, BN) * PB + tile_column(j, BN), tile_b(j));
    } else {
        [[unroll]] for (uint i = 0; i < LB; i++)
            [[unroll]] for (uint j = 0; j < 4; j++) put_two(SB + tile_row(i), PB, tile_chunk() * 8 + j * 2, rb[i][j]);
    }
}

void multiply(uint tr, uint tc)
{
    [[unroll]] for (uint k = 0; k < ROWS; k++) {
        uint x[8], y[8];
        [[unroll]] for (uint i = 0; i < 8; i++) x[i] = tile[k * PA + i / 4 * (BM / 2) + tr * 4 + i % 4];
        [[unroll]] for (uint j = 0; j < 8; j++) y[j] = tile[SB + k * PB + j / 4 * (BN / 2) + tc * 4 + j % 4];
        if (PAIRS != 0) {
            [[unroll]] for (uint e = 0; e < 2; e++) // one half of every pair, then the other: no sum waits for itself
                [[unroll]] for (uint i = 0; i < 8; i++)
                    [[unroll]] for (uint j = 0; j < 8; j++) acc[i][j] = fma(unpackHalf2x16(x[i])[e], unpackHalf2x16(y[j])[e], acc[i][j]);
        } else {
            [[unroll]] for (uint i = 0; i < 8; i++)
                [[unroll]] for (uint j = 0; j < 8; j++) acc[i][j] = fma(uintBitsToFloat(x[i]), uintBitsToFloat(y[j]), acc[i][j]);
        }
    }
}

void main()
{
    uint t = gl_LocalInvocationID.x, m0 = tiles_first_row(), n0 = gl_WorkGroupID.y * BN, z = gl_WorkGroupID.z;
    uint tc = t % 8 + t / 32 % (CT / 8) * 8, tr = t / 8 % 4 + t / (4 * CT) * 4; // 32 neighbours cover 4 x 8 threads
    [[unroll]] for (uint i = 0; i < 8; i++)
        [[unroll]] for (uint j = 0; j < 8; j++) acc[i][j] = 0.0;

    tiles_begin(m0, n0, z);
    tiles_fetch();
    put();
    barrier();
    while (tiles_left > 0) {
        tiles_advance();
        tiles_fetch();
        multiply(tr, tc);
        barrier();
        put();
        barrier();
    }

    [[unroll]] for (uint h = 0; h < 2; h++) {
        uint n = n0 + h * (BN / 2) + tc * 4, at[8];
        vec4 terms[8];
        [[unroll]] for (uint i = 0; i < 8; i++) {
            at[i] = tiles_output(min(m0 + i / 4 * (BM / 2) + tr * 4 + i % 4, rows - 1));
            terms[i] = terms_of_four(at[i], min(n, p.N - 4), z * p.c_stride);
        }
        [[unroll]] for (uint i = 0; i < 8; i++) {
            uint m = m0 + i / 4 * (BM / 2) + tr * 4 + i % 4;
            vec4 v = vec4(acc[i][h * 4], acc[i][h * 4 + 1], acc[i][h * 4 + 2], acc[i][h * 4 + 3]);
            if (m < rows && n < p.N) store_four(at[i], n, z * p.c_stride, v, terms[i]);
        }
    }
}
