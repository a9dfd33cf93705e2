#version 450
// r = 2 (I - Q)^-1 - I of one block per workgroup: Gauss-Jordan in the scratch memory. No pivots are needed: I - Q has the identity as its
// symmetric part, so every pivot is at least 1.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "cayley.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint blocks, size; float limit; } p;
layout(set = 0, binding = 0) readonly buffer B { float b[]; };
layout(set = 0, binding = 1) writeonly buffer R { float r[]; };
layout(set = 0, binding = 2) coherent buffer Scratch { float scratch[]; };

void sync()
{
    memoryBarrierBuffer();
    barrier();
}

void main()
{
    uint t = gl_LocalInvocationID.x, n = p.size, area = n * n, first = GROUP_INDEX * area, m = SUMS + first;
    if (GROUP_INDEX >= p.blocks) return;
    float factor = shrink(p.limit, scratch[0]);
    for (uint at = t; at < area; at += 128) {
        uint i = at / n, j = at % n;
        scratch[m + at] = (i == j ? 1.0 : 0.0) - factor * (b[first + at] - b[first + j * n + i]);
    }
    sync();
    for (uint k = 0; k < n; k++) {
        float pivot = 1.0 / scratch[m + k * n + k];
        sync();
        for (uint j = t; j < n; j += 128) scratch[m + k * n + j] = (j == k ? 1.0 : scratch[m + k * n + j]) * pivot;
        sync();
        // Column k is read before anyone changes it: every thread changes whole rows.
        for (uint i = t; i < n; i += 128) {
            if (i == k) continue;
            float f = scratch[m + i * n + k];
            for (uint j = 0; j < n; j++) scratch[m + i * n + j] = (j == k ? 0.0 : scratch[m + i * n + j]) - f * scratch[m + k * n + j];
        }
        sync();
    }
    for (uint at = t; at < area; at += 128) r[first + at] = 2.0 * scratch[m + at] - (at % (n + 1) == 0 ? 1.0 : 0.0);
}
