// Scores and their gradients for one block of queries and keys: P = exp(scale q k^T - lse), dS = P * (do v^T - delta) * scale.
#include "attention.glsl"
layout(set = 0, binding = 0) readonly buffer Q1 { T0 q[]; };
layout(set = 0, binding = 0) readonly buffer Q4 { T0_4 q4[]; };
layout(set = 0, binding = 1) readonly buffer K1 { T1 k[]; };
layout(set = 0, binding = 1) readonly buffer K4 { T1_4 k4[]; };
layout(set = 0, binding = 2) readonly buffer V1 { T1 v[]; };
layout(set = 0, binding = 2) readonly buffer V4 { T1_4 v4[]; };
layout(set = 0, binding = 3) readonly buffer DO1 { T2 dy[]; };
layout(set = 0, binding = 3) readonly buffer DO4 { T2_4 dy4[]; };
layout(set = 0, binding = 4) readonly buffer LSE { float lse[]; };
layout(set = 0, binding = 5) readonly buffer Delta { float delta[]; };

shared float sq[DC * PR], sk[DC * PC], sv[DC * PC], sy[DC * PR];
float prob[R][C], slope[R][C];

void block_scores(uint i0, uint j0)
{
    uint t = gl_LocalInvocationID.x, tr = t / 8, tc = t % 8, q_base = QUERY_BASE, k_base = KEY_BASE;
    [[unroll]] for (uint i = 0; i < R; i++) [[unroll]] for (uint j = 0; j < C; j++) prob[i][j] = slope[i][j] = 0;
    for (uint chunk = 0; chunk < CHUNKS; chunk++) {
        barrier();
        LOAD_TILE(sq, PR, q, q4, BR, q_base, i0, p.tq, chunk)
        LOAD_TILE(sk, PC, k, k4, BC, k_base, j0, p.tk, chunk)
        LOAD_TILE(sv, PC, v, v4, BC, k_base, j0, p.tk, chunk)
        LOAD_TILE(sy, PR, dy, dy4, BR, q_base, i0, p.tq, chunk)
        barrier();
        for (uint d = 0; d < DC; d++) {
            float x[R], y[C], u[R], w[C];
            [[unroll]] for (uint i = 0; i < R; i++) {
                x[i] = sq[d * PR + tr * R + i];
                u[i] = sy[d * PR + tr * R + i];
            }
            [[unroll]] for (uint j = 0; j < C; j++) {
                y[j] = sk[d * PC + tc * C + j];
                w[j] = sv[d * PC + tc * C + j];
            }
            [[unroll]] for (uint i = 0; i < R; i++)
                [[unroll]] for (uint j = 0; j < C; j++) {
                    prob[i][j] = fma(x[i], y[j], prob[i][j]);
                    slope[i][j] = fma(u[i], w[j], slope[i][j]);
                }
        }
    }
    uint rows = (gl_WorkGroupID.z * p.heads + gl_WorkGroupID.y) * p.tq;
    [[unroll]] for (uint i = 0; i < R; i++) {
        uint query = i0 + tr * R + i, at = rows + min(query, p.tq - 1);
        float l = lse[at], del = delta[at];
        [[unroll]] for (uint j = 0; j < C; j++) {
            bool seen = sees(query, j0 + tc * C + j);
            prob[i][j] = seen ? exp(prob[i][j] * p.scale - l) : 0.0;
            slope[i][j] = prob[i][j] * (slope[i][j] - del) * p.scale;
        }
    }
}
