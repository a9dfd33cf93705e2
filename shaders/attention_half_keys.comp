#version 450
// dv = P^T do (side 0) and dk = dS^T q (side 1). Workgroup (block of keys and part of the queries, head, image); attention_half_backward.glsl says
// how. Where there are several parts, attention_join.comp adds up what they give.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "attention_half_backward.glsl"
layout(set = 0, binding = 4) readonly buffer Rows { vec4 rows4[]; }; // delta, then log2(e) lse: [2][images, heads, pitch]
layout(set = 0, binding = 5) writeonly buffer DK { T0 dk[]; };
layout(set = 0, binding = 6) writeonly buffer DV { T0 dv[]; };
layout(set = 0, binding = 7) writeonly buffer Parts { float parts[]; }; // [2][parts of the queries][images, tk, heads, D]: dk, dv

uint block, part; // of keys, of queries: `share` queries each

shared vec4 weights[2 * TILE_W]; // P, dS: [key][query]

void fetch_keys(uint chunk) { FETCH(rh, block * HELD, p.tk, chunk, HELD / 2, k8, v8) }
void fetch_queries(uint i0, uint chunk) { FETCH(rp, i0, p.tq, chunk, PASSING / 2, q8, dy8) }

// row: what belongs to the thread's four queries.
void make_weights(vec4 row, float factor)
{
    uint w = tr() * 4 * CP + tc();
    if (side() == 0)
        [[unroll]] for (uint i = 0; i < 4; i++) weights[w + i * CP] = exp2(s[i] * factor - row);
    barrier();
    if (side() == 1)
        [[unroll]] for (uint i = 0; i < 4; i++) weights[TILE_W + w + i * CP] = weights[w + i * CP] * (s[i] - row);
    barrier();
}

void store(uint blocks)
{
    float factor = side() == 0 ? 1.0 : p.scale;
    uint to = (side() == 0 ? gl_NumWorkGroups.x / blocks + part : part) * gl_NumWorkGroups.z * p.tk * line() * 8;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint key = block * HELD + tr() * 4 + i, at = token_at(key, p.tk, 0, 0) * 8 + tc();
        if (key >= p.tk) continue;
        [[unroll]] for (uint c = 0; c < CHUNKS; c++)
            [[unroll]] for (uint e = 0; e < 5; e++) {
                if (p.share < p.tq) parts[to + at + c * PLACES + e * 8] = acc[c][i][e] * factor;
                else if (side() == 0) dv[at + c * PLACES + e * 8] = T0(acc[c][i][e]);
                else dk[at + c * PLACES + e * 8] = T0(acc[c][i][e] * factor);
            }
    }
}

void main()
{
    float factor = p.scale * 1.44269504; // exp2 is one instruction
    uint row = (((1 - side()) * gl_NumWorkGroups.z + gl_WorkGroupID.z) * p.heads + gl_WorkGroupID.y) * p.pitch / 4 + tc();
    uint blocks = (p.tk + HELD - 1) / HELD;
    block = gl_WorkGroupID.x % blocks;
    part = gl_WorkGroupID.x / blocks;
    uint first = part * p.share, end = min(first + p.share, p.tq);
    [[unroll]] for (uint c = 0; c < CHUNKS; c++)
        [[unroll]] for (uint i = 0; i < 4; i++) [[unroll]] for (uint e = 0; e < 5; e++) acc[c][i][e] = 0.0;
    fetch_keys(0);
    fetch_queries(first, 0);
    put_held();
    put_passing();
    barrier();
    for (uint i0 = first; i0 < end; i0 += PASSING) {
        vec4 r = rows4[row + i0 / 4];
        [[unroll]] for (uint i = 0; i < 4; i++) s[i] = vec4(0.0);
        if (CHUNKS == 1)
            add_scores();
        else
            [[dont_unroll]] for (uint c = 0; c < CHUNKS; c++) { // for registers, and the length of the code
                uint next = c + 1 < CHUNKS ? c + 1 : 0;
                add_scores();
                fetch_keys(next);
                fetch_queries(i0, next);
                barrier();
                put_held();
                put_passing();
                barrier();
            }
        make_weights(r, factor);
        [[unroll]] for (uint c = 0; c < CHUNKS; c++) {
            uint next = c + 1 < CHUNKS ? c + 1 : 0, from = next > 0 ? i0 : i0 + PASSING;
            if (CHUNKS == 1) fetch_queries(from, next);
            ADD_GRADIENTS(c, weights, side() * TILE_W + tr() * 4 * CP, 1 - side(), 0, CP)
            if (CHUNKS > 1) fetch_queries(from, next); // later: registers are scarce
            barrier();
            put_passing();
            barrier();
        }
    }
    store(blocks);
}
