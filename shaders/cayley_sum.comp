#version 450
// scratch[0] = sum over all blocks of (b - b^T)^2; or scratch[1] = sum of q (b - b^T) / 2. One workgroup.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "cayley.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint ALONG = 0;
layout(push_constant) uniform Shape { uint blocks, size; float limit; } p;
layout(set = 0, binding = 0) readonly buffer B { float b[]; };
layout(set = 0, binding = 1) buffer Scratch { float scratch[]; };
shared float sums[128];

void main()
{
    uint t = gl_LocalInvocationID.x, area = p.size * p.size;
    float sum = 0;
    for (uint at = t; at < p.blocks * area; at += 128) {
        float q = b[at] - b[at / area * area + at % p.size * p.size + at % area / p.size];
        sum += ALONG != 0 ? scratch[SUMS + at] * q * 0.5 : q * q;
    }
    sums[t] = sum;
    for (uint step = 64; step > 0; step /= 2) {
        barrier();
        if (t < step) sums[t] += sums[t + step];
    }
    if (t == 0) scratch[ALONG] = sums[0];
}
