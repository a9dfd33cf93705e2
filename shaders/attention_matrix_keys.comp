#version 450
// dv = P^T do (side 0) and dk = dS^T q (side 1) on matrix units. Workgroup (block of keys and part of the queries, head, image);
// attention_matrix_backward.glsl says how. Where there are several parts, attention_join.comp adds up what they give.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#define KEYS_HELD 1
#include "attention_matrix_backward.glsl"
layout(set = 0, binding = 5) writeonly buffer DK { uvec4 dk8[]; };
layout(set = 0, binding = 6) writeonly buffer DV { uvec4 dv8[]; };
layout(set = 0, binding = 7) writeonly buffer Parts { vec4 parts4[]; }; // [2][parts of the queries][images, tk, heads, D]: dk, dv

SUMS acc[FD];
SUMS row[FP];

void make_weights(float factor)
{
    if (side() == 0) [[unroll]] for (uint j = 0; j < FP; j++) put_probabilities(j, row[j], factor);
    barrier();
    if (side() == 1) [[unroll]] for (uint j = 0; j < FP; j++) put_slopes(j, row[j]);
    wave_sync();
}

void add_gradients()
{
    uint strip = side() == 0 ? probabilities() : slopes(), turned = AT_TURNED + (1 - side()) * TURNED;
    [[unroll]] for (uint k = 0; k < FP; k++) {
        LEFT weights;
        coopMatLoad(weights, tile, strip + k * FC, PB, ROWS);
        [[unroll]] for (uint d = 0; d < FD; d++) {
            RIGHT x;
            coopMatLoad(x, tile, turned + d * FRAG * PB + k * FC, PB, COLUMNS);
            acc[d] = coopMatMulAdd(weights, x, acc[d]);
        }
    }
}

void main()
{
    float factor = p.scale * 1.44269504; // exp2 is one instruction
    uint at = (((1 - side()) * gl_NumWorkGroups.z + gl_WorkGroupID.z) * p.heads + gl_WorkGroupID.y) * p.pitch;
    uint blocks = (p.tk + HELD - 1) / HELD, part = gl_WorkGroupID.x / blocks, first = part * p.share, end = min(first + p.share, p.tq);
    block = gl_WorkGroupID.x % blocks;
    HOLD(k8, v8, p.tk)
    pad();
    [[unroll]] for (uint d = 0; d < FD; d++) acc[d] = SUMS(0.0);
    FETCH(first, p.tq, q8, dy8)
    put(first, p.tq);
    barrier();
    for (uint i0 = first; i0 < end; i0 += PASSING) {
        [[unroll]] for (uint j = 0; j < FP; j++) coopMatLoad(row[j], rows, at + i0 + j * FRAG, 0, ROWS);
        multiply_tokens();
        make_weights(factor);
        add_gradients();
        FETCH(i0 + PASSING, p.tq, q8, dy8)
        barrier();
        put(i0 + PASSING, p.tq);
        barrier();
    }
    float last = side() == 0 ? 1.0 : p.scale;
    uint sums = (side() == 0 ? gl_NumWorkGroups.x / blocks + part : part) * gl_NumWorkGroups.z * p.tk * line();
    [[unroll]] for (uint d = 0; d < FD; d++)
        STORE(acc[d], last, if (token < p.tk && d * FC + at < CHUNKS) {
            uint to = token_at(token, p.tk) + d * FC + at;
            if (p.share < p.tq) {
                parts4[(sums + to) * 2] = low;
                parts4[(sums + to) * 2 + 1] = high;
            } else if (side() == 0) dv8[to] = halfs(low, high);
            else dk8[to] = halfs(low, high);
        })
}
