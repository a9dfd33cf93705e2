#version 450
// o = softmax(scale * q k^T) v per head, and the log-sum-exp of every row of scores for the backward pass; the scores live in registers
// and shared memory only (Dao et al., FlashAttention, 2022). Workgroup (block of queries, head, image).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention.glsl"
layout(set = 0, binding = 0) readonly buffer Q1 { T0 q[]; };
layout(set = 0, binding = 0) readonly buffer Q4 { T0_4 q4[]; };
layout(set = 0, binding = 1) readonly buffer K1 { T1 k[]; };
layout(set = 0, binding = 1) readonly buffer K4 { T1_4 k4[]; };
layout(set = 0, binding = 2) readonly buffer V1 { T1 v[]; };
layout(set = 0, binding = 2) readonly buffer V4 { T1_4 v4[]; };
layout(set = 0, binding = 3) writeonly buffer O1 { T2 o[]; };
layout(set = 0, binding = 4) writeonly buffer LSE { float lse[]; }; // [images, heads, tq]

shared float sq[DC * PR], skv[DC * PC], sp[BC * PR], sm[BR * 8];
const float LOG2E = 1.44269504;

void main()
{
    uint t = gl_LocalInvocationID.x, tr = t / 8, tc = t % 8;
    uint i0 = gl_WorkGroupID.x * BR, q_base = QUERY_BASE, k_base = KEY_BASE;
    float acc[R][CHUNKS * E], top[R], sum[R];
    [[unroll]] for (uint i = 0; i < R; i++) {
        top[i] = -1e30;
        sum[i] = 0;
        [[unroll]] for (uint e = 0; e < CHUNKS * E; e++) acc[i][e] = 0;
    }
    if (CHUNKS == 1) LOAD_TILE(sq, PR, q, q4, BR, q_base, i0, p.tq, 0)
    uint keys = CAUSAL != 0 ? min(p.tk, i0 + BR) : p.tk;
    float factor = p.scale * LOG2E;
    for (uint j0 = 0; j0 < keys; j0 += BC) {
        float s[R][C];
        [[unroll]] for (uint i = 0; i < R; i++) [[unroll]] for (uint j = 0; j < C; j++) s[i][j] = 0;
        for (uint chunk = 0; chunk < CHUNKS; chunk++) {
            barrier(); // the last readers of the tiles are through
            if (CHUNKS != 1) LOAD_TILE(sq, PR, q, q4, BR, q_base, i0, p.tq, chunk)
            LOAD_TILE(skv, PC, k, k4, BC, k_base, j0, p.tk, chunk)
            barrier();
            for (uint d = 0; d < DC; d++) {
                float x[R], y[C];
                [[unroll]] for (uint i = 0; i < R; i++) x[i] = sq[d * PR + tr * R + i];
                [[unroll]] for (uint j = 0; j < C; j++) y[j] = skv[d * PC + tc * C + j];
                [[unroll]] for (uint i = 0; i < R; i++) [[unroll]] for (uint j = 0; j < C; j++) s[i][j] = fma(x[i], y[j], s[i][j]);
            }
        }
        [[unroll]] for (uint i = 0; i < R; i++) {
            float m = -1e30;
            [[unroll]] for (uint j = 0; j < C; j++) {
                s[i][j] = sees(i0 + tr * R + i, j0 + tc * C + j) ? s[i][j] * factor : -1e30;
                m = max(m, s[i][j]);
            }
            sm[(tr * R + i) * 8 + tc] = m;
        }
        barrier();
        [[unroll]] for (uint i = 0; i < R; i++) {
            float m = top[i];
            [[unroll]] for (uint j = 0; j < 8; j++) m = max(m, sm[(tr * R + i) * 8 + j]);
            float shrink = exp2(top[i] - m);
            top[i] = m;
            sum[i] *= shrink; // this thread's keys only, until the end
            [[unroll]] for (uint e = 0; e < CHUNKS * E; e++) acc[i][e] *= shrink;
            [[unroll]] for (uint j = 0; j < C; j++) {
                float w = exp2(s[i][j] - m);
                sum[i] += w;
                sp[(tc * C + j) * PR + tr * R + i] = w;
            }
        }
        for (uint chunk = 0; chunk < CHUNKS; chunk++) {
            float part[R][E];
            [[unroll]] for (uint i = 0; i < R; i++) [[unroll]] for (uint e = 0; e < E; e++) part[i][e] = 0;
            barrier();
            LOAD_TILE(skv, PC, v, v4, BC, k_base, j0, p.tk, chunk)
            barrier();
            for (uint j = 0; j < BC; j++) {
                float x[R], y[E];
                [[unroll]] for (uint i = 0; i < R; i++) x[i] = sp[j * PR + tr * R + i];
                [[unroll]] for (uint e = 0; e < E; e++) y[e] = skv[(e * 8 + tc) * PC + j];
                [[unroll]] for (uint i = 0; i < R; i++)
                    [[unroll]] for (uint e = 0; e < E; e++) part[i][e] = fma(x[i], y[e], part[i][e]);
            }
            ADD_PART(acc, part, R, chunk)
        }
    }
    barrier();
    [[unroll]] for (uint i = 0; i < R; i++) sm[(tr * R + i) * 8 + tc] = sum[i];
    barrier();
    [[unroll]] for (uint i = 0; i < R; i++) {
        uint row = i0 + tr * R + i;
        float all = 0;
        [[unroll]] for (uint j = 0; j < 8; j++) all += sm[(tr * R + i) * 8 + j];
        if (row < p.tq) {
            [[unroll]] for (uint e = 0; e < CHUNKS * E; e++) {
                uint d = e / E * DC + e % E * 8 + tc;
                if (d < D) o[q_base + row * PITCH + d] = T2(acc[i][e] / all);
            }
            if (tc == 0) lse[(gl_WorkGroupID.z * p.heads + gl_WorkGroupID.y) * p.tq + row] = (top[i] + log2(all)) / LOG2E;
        }
    }
}
