#version 450
// dq = dS k. Workgroup (block of queries, head, image); attention_half_backward.glsl says how. Either side sums over half of the passing keys.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention_half_backward.glsl"
layout(set = 0, binding = 4) readonly buffer Rows { float rows[]; }; // delta, then log2(e) lse: [2][images, heads, pitch]
layout(set = 0, binding = 5) writeonly buffer DQ { T0 dq[]; };

shared vec4 weights[HELD * PLACES / 4]; // P, then dS: [query][key]; at the end what side 1 has summed

void fetch_queries(uint chunk) { FETCH(rh, gl_WorkGroupID.x * HELD, p.tq, chunk, HELD / 2, q8, dy8) }
void fetch_keys(uint j0, uint chunk) { FETCH(rp, j0, p.tk, chunk, PASSING / 2, k8, v8) }

// row: what belongs to the thread's four queries.
void make_weights(uint j0, vec4 row, float factor)
{
    uint w = tr() * 4 * CP + tc();
    if (side() == 0) {
        [[unroll]] for (uint i = 0; i < 4; i++) s[i] = exp2(s[i] * factor - row[i]);
        if (TAIL != 0 && j0 + PASSING > p.tk) // uniform: only the last block pays
            [[unroll]] for (uint j = 0; j < 4; j++)
                if (j0 + tc() * 4 + j >= p.tk) [[unroll]] for (uint i = 0; i < 4; i++) s[i][j] = 0.0;
        [[unroll]] for (uint i = 0; i < 4; i++) weights[w + i * CP] = s[i];
    }
    barrier();
    if (side() == 1)
        [[unroll]] for (uint i = 0; i < 4; i++) weights[w + i * CP] *= s[i] - row[i];
    barrier();
}

// Side 1 hands its sums over to side 0.
void store()
{
    uint t = gl_LocalInvocationID.x % SIDE;
    [[unroll]] for (uint c = 0; c < CHUNKS; c++) {
        barrier();
        if (side() == 1)
            [[unroll]] for (uint e = 0; e < 5; e++) weights[e * SIDE + t] = vec4(acc[c][0][e], acc[c][1][e], acc[c][2][e], acc[c][3][e]);
        barrier();
        if (side() == 0)
            [[unroll]] for (uint e = 0; e < 5; e++) {
                vec4 other = weights[e * SIDE + t];
                [[unroll]] for (uint i = 0; i < 4; i++) {
                    uint query = gl_WorkGroupID.x * HELD + tr() * 4 + i;
                    if (query < p.tq) dq[token_at(query, p.tq, c, e) * 8 + tc()] = T0((acc[c][i][e] + other[i]) * p.scale);
                }
            }
    }
}

void main()
{
    float factor = p.scale * 1.44269504; // exp2 is one instruction
    uint at = (((1 - side()) * gl_NumWorkGroups.z + gl_WorkGroupID.z) * p.heads + gl_WorkGroupID.y) * p.pitch + gl_WorkGroupID.x * HELD + tr() * 4;
    vec4 row = vec4(rows[at], rows[at + 1], rows[at + 2], rows[at + 3]);
    [[unroll]] for (uint c = 0; c < CHUNKS; c++)
        [[unroll]] for (uint i = 0; i < 4; i++) [[unroll]] for (uint e = 0; e < 5; e++) acc[c][i][e] = 0.0;
    fetch_queries(0);
    fetch_keys(0, 0);
    put_held();
    put_passing();
    barrier();
    for (uint j0 = 0; j0 < p.tk; j0 += PASSING) {
        [[unroll]] for (uint i = 0; i < 4; i++) s[i] = vec4(0.0);
        if (CHUNKS == 1)
            add_scores();
        else
            [[dont_unroll]] for (uint c = 0; c < CHUNKS; c++) { // for registers, and the length of the code
                uint next = c + 1 < CHUNKS ? c + 1 : 0;
                add_scores();
                fetch_queries(next);
                fetch_keys(j0, next);
                barrier();
                put_held();
                put_passing();
                barrier();
            }
        make_weights(j0, row, factor);
        [[unroll]] for (uint c = 0; c < CHUNKS; c++) {
            uint next = c + 1 < CHUNKS ? c + 1 : 0, from = next > 0 ? j0 : j0 + PASSING;
            if (CHUNKS == 1) fetch_keys(from, next);
            ADD_GRADIENTS(c, weights, tr() * 4 * CP, 0, side() * (CP / 2), CP / 2)
            if (CHUNKS > 1) fetch_keys(from, next); // later: registers are scarce
            barrier();
            put_passing();
            barrier();
        }
    }
    store();
}
