#version 450
// scratch = dQ - dQ^T with dQ = (R + I)^T dR (R + I)^T / 2, of one block per workgroup.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "cayley.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint blocks, size; float limit; } p;
layout(set = 0, binding = 0) readonly buffer R { float r[]; };
layout(set = 0, binding = 1) readonly buffer Grad { float grad[]; };
layout(set = 0, binding = 2) coherent buffer Scratch { float scratch[]; };

float plus_one(uint first, uint i, uint j) { return r[first + i * p.size + j] + (i == j ? 1.0 : 0.0); }

void main()
{
    uint t = gl_LocalInvocationID.x, n = p.size, area = n * n, first = GROUP_INDEX * area, q = SUMS + first;
    uint product = SUMS + p.blocks * area + first;
    if (GROUP_INDEX >= p.blocks) return;
    for (uint at = t; at < area; at += 128) {
        uint i = at / n, j = at % n;
        float sum = 0;
        for (uint k = 0; k < n; k++) sum += plus_one(first, k, i) * grad[first + k * n + j];
        scratch[product + at] = sum;
    }
    memoryBarrierBuffer();
    barrier();
    for (uint at = t; at < area; at += 128) {
        uint i = at / n, j = at % n;
        float above = 0, below = 0;
        for (uint k = 0; k < n; k++) {
            above += scratch[product + i * n + k] * plus_one(first, j, k);
            below += scratch[product + j * n + k] * plus_one(first, i, k);
        }
        scratch[q + at] = 0.5 * (above - below);
    }
}
