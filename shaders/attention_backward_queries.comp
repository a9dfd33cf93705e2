#version 450
// dq = dS k: one workgroup per block of queries, head and image walks over all keys.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention_backward.glsl"
layout(set = 0, binding = 6) writeonly buffer DQ { T2 dq[]; };

shared float ss[BC * PR]; // [key][query]: dS

void main()
{
    uint t = gl_LocalInvocationID.x, tr = t / 8, tc = t % 8, i0 = gl_WorkGroupID.x * BR, q_base = QUERY_BASE, k_base = KEY_BASE;
    float acc[R][CHUNKS * E];
    [[unroll]] for (uint i = 0; i < R; i++) [[unroll]] for (uint e = 0; e < CHUNKS * E; e++) acc[i][e] = 0;
    uint keys = CAUSAL != 0 ? min(p.tk, i0 + BR) : p.tk;
    for (uint j0 = 0; j0 < keys; j0 += BC) {
        block_scores(i0, j0);
        [[unroll]] for (uint i = 0; i < R; i++)
            [[unroll]] for (uint j = 0; j < C; j++) ss[(tc * C + j) * PR + tr * R + i] = slope[i][j];
        for (uint chunk = 0; chunk < CHUNKS; chunk++) {
            float part[R][E];
            [[unroll]] for (uint i = 0; i < R; i++) [[unroll]] for (uint e = 0; e < E; e++) part[i][e] = 0;
            if (CHUNKS != 1) {
                barrier();
                LOAD_TILE(sk, PC, k, k4, BC, k_base, j0, p.tk, chunk)
            }
            barrier();
            for (uint j = 0; j < BC; j++) {
                float x[R], y[E];
                [[unroll]] for (uint i = 0; i < R; i++) x[i] = ss[j * PR + tr * R + i];
                [[unroll]] for (uint e = 0; e < E; e++) y[e] = sk[(e * 8 + tc) * PC + j];
                [[unroll]] for (uint i = 0; i < R; i++)
                    [[unroll]] for (uint e = 0; e < E; e++) part[i][e] = fma(x[i], y[e], part[i][e]);
            }
            ADD_PART(acc, part, R, chunk)
        }
    }
    [[unroll]] for (uint i = 0; i < R; i++) {
        uint query = i0 + tr * R + i;
        if (query < p.tq) {
            [[unroll]] for (uint e = 0; e < CHUNKS * E; e++) {
                uint d = e / E * DC + e % E * 8 + tc;
                if (d < D) dq[q_base + query * PITCH + d] = T2(acc[i][e]);
            }
        }
    }
}
