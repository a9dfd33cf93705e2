#version 450
// dv = P^T do, dk = dS^T q: one workgroup per block of keys, head and image walks over all queries. No atomics, so the same bytes every time.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention_backward.glsl"
layout(set = 0, binding = 6) writeonly buffer DK { T2 dk[]; };
layout(set = 0, binding = 7) writeonly buffer DV { T2 dv[]; };

shared float sp[BR * PC], ss[BR * PC]; // [query][key]: P, dS

void main()
{
    uint t = gl_LocalInvocationID.x, tr = t / 8, tc = t % 8, j0 = gl_WorkGroupID.x * BC, q_base = QUERY_BASE, k_base = KEY_BASE;
    float acc_k[C][CHUNKS * E], acc_v[C][CHUNKS * E];
    [[unroll]] for (uint j = 0; j < C; j++) [[unroll]] for (uint e = 0; e < CHUNKS * E; e++) acc_k[j][e] = acc_v[j][e] = 0;
    for (uint i0 = CAUSAL != 0 ? j0 / BR * BR : 0; i0 < p.tq; i0 += BR) {
        block_scores(i0, j0);
        [[unroll]] for (uint i = 0; i < R; i++)
            [[unroll]] for (uint j = 0; j < C; j++) {
                sp[(tr * R + i) * PC + tc * C + j] = prob[i][j];
                ss[(tr * R + i) * PC + tc * C + j] = slope[i][j];
            }
        for (uint chunk = 0; chunk < CHUNKS; chunk++) {
            float part_k[C][E], part_v[C][E];
            [[unroll]] for (uint j = 0; j < C; j++) [[unroll]] for (uint e = 0; e < E; e++) part_k[j][e] = part_v[j][e] = 0;
            if (CHUNKS != 1) {
                barrier();
                LOAD_TILE(sq, PR, q, q4, BR, q_base, i0, p.tq, chunk)
                LOAD_TILE(sy, PR, dy, dy4, BR, q_base, i0, p.tq, chunk)
            }
            barrier();
            for (uint i = 0; i < BR; i++) { // here thread (tr, tc) has keys tr * C .. and places tc, tc + 8, ..
                float x[C], u[C], y[E], w[E];
                [[unroll]] for (uint j = 0; j < C; j++) {
                    x[j] = sp[i * PC + tr * C + j];
                    u[j] = ss[i * PC + tr * C + j];
                }
                [[unroll]] for (uint e = 0; e < E; e++) {
                    y[e] = sy[(e * 8 + tc) * PR + i];
                    w[e] = sq[(e * 8 + tc) * PR + i];
                }
                [[unroll]] for (uint j = 0; j < C; j++)
                    [[unroll]] for (uint e = 0; e < E; e++) {
                        part_v[j][e] = fma(x[j], y[e], part_v[j][e]);
                        part_k[j][e] = fma(u[j], w[e], part_k[j][e]);
                    }
            }
            ADD_PART(acc_v, part_v, C, chunk)
            ADD_PART(acc_k, part_k, C, chunk)
        }
    }
    [[unroll]] for (uint j = 0; j < C; j++) {
        uint key = j0 + tr * C + j;
        if (key < p.tk) {
            [[unroll]] for (uint e = 0; e < CHUNKS * E; e++) {
                uint d = e / E * DC + e % E * 8 + tc;
                if (d < D) {
                    dk[k_base + key * PITCH + d] = T2(acc_k[j][e]);
                    dv[k_base + key * PITCH + d] = T2(acc_v[j][e]);
                }
            }
        }
    }
}
