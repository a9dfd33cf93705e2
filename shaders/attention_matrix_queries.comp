#version 450
// dq = dS k on matrix units. Workgroup (block of queries, head, image); attention_matrix_backward.glsl says how. Either side sums over half of the
// passing keys, or where those are one fragment, has half of the places.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#define KEYS_HELD 0
#include "attention_matrix_backward.glsl"
layout(set = 0, binding = 5) writeonly buffer DQ { uvec4 dq8[]; };

const bool BY_KEYS = FP % 2 == 0;
const uint FK = BY_KEYS ? FP / 2 : FP, FA = BY_KEYS ? FD : FD / 2; // fragments of keys and places of a side
SUMS acc[FA];
SUMS row;

void make_weights(float factor)
{
    if (side() == 0) [[unroll]] for (uint j = 0; j < FP; j++) put_probabilities(j, row, factor);
    barrier();
    if (side() == 1) [[unroll]] for (uint j = 0; j < FP; j++) put_slopes(j, row);
    barrier();
}

void add_gradients()
{
    uint k0 = BY_KEYS ? side() * FK : 0, d0 = BY_KEYS ? 0 : side() * FA;
    [[unroll]] for (uint k = 0; k < FK; k++) {
        LEFT weights;
        coopMatLoad(weights, tile, slopes() + (k0 + k) * FC, PB, ROWS);
        [[unroll]] for (uint d = 0; d < FA; d++) {
            RIGHT x;
            coopMatLoad(x, tile, AT_TURNED + (d0 + d) * FRAG * PB + (k0 + k) * FC, PB, COLUMNS);
            acc[d] = coopMatMulAdd(weights, x, acc[d]);
        }
    }
}

// Side 1 hands its sums over to side 0.
void join_sides()
{
    uint at = couple() * RESULT;
    [[unroll]] for (uint d = 0; d < FA; d++) {
        if (side() == 1) coopMatStore(acc[d], tile, at, PO, ROWS);
        barrier();
        if (side() == 0) {
            SUMS other;
            coopMatLoad(other, tile, at, PO, ROWS);
            acc[d] = acc[d] + other;
        }
        barrier();
    }
}

void main()
{
    float factor = p.scale * 1.44269504; // exp2 is one instruction
    uint at = (((1 - side()) * gl_NumWorkGroups.z + gl_WorkGroupID.z) * p.heads + gl_WorkGroupID.y) * p.pitch;
    block = gl_WorkGroupID.x;
    HOLD(q8, dy8, p.tq)
    pad();
    coopMatLoad(row, rows, at + block * HELD + couple() * FRAG, 0, ROWS);
    [[unroll]] for (uint d = 0; d < FA; d++) acc[d] = SUMS(0.0);
    FETCH(0, p.tk, k8, v8)
    put(0, p.tk);
    barrier();
    for (uint j0 = 0; j0 < p.tk; j0 += PASSING) {
        multiply_tokens();
        make_weights(factor);
        add_gradients();
        FETCH(j0 + PASSING, p.tk, k8, v8)
        barrier();
        put(j0 + PASSING, p.tk);
        barrier();
    }
    if (BY_KEYS) join_sides();
    uint first = BY_KEYS ? 0 : side() * FA;
    bool mine = !BY_KEYS || side() == 0;
    [[unroll]] for (uint d = 0; d < FA; d++)
        STORE(acc[d], p.scale, if (mine && token < p.tq && (first + d) * FC + at < CHUNKS) dq8[token_at(token, p.tq) + (first + d) * FC + at] = halfs(low, high);)
}
