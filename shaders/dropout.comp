#version 450
// y = factor x, or 0 where the hash of the element's place is below the threshold (see ops/dropout.c, which has the same).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint steps, columns, rows_per_group, whole, stream, threshold; float factor; } p;
INPUT(0, x, T0)
OUTPUT(1, y, T1)
layout(set = 0, binding = 2) readonly buffer Key { float key[]; };

uint choice(uint place) // pcg4d, Jarzynski & Olano 2020
{
    uvec4 v = uvec4(place, p.stream, uint(key[0]), uint(key[1])) * 1664525u + 1013904223u;
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v ^= v >> 16;
    return v.x + v.y * v.w;
}

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.steps) return;
    uint row = i * STEP / p.columns, first = row / p.rows_per_group * p.columns + i * STEP % p.columns;
    vec4 v[FOURS];
    EACH_FOUR v[k] = x(i, k);
    EACH_FOUR {
        [[unroll]] for (uint j = 0; j < 4; j++) v[k][j] = choice(p.whole != 0 ? 0 : first + 4 * k + j) >= p.threshold ? p.factor * v[k][j] : 0;
    }
    EACH_FOUR y(i, k, v[k]);
}
