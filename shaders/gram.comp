#version 450
// product[i, j] = (up^T up)[i, j] (down down^T)[i, j], whose sum is ||up down||^2. One workgroup for each pair.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint ranks, outputs, inputs, taps; } p;
layout(set = 0, binding = 0) readonly buffer Up { float up[]; };     // [outputs, ranks]
layout(set = 0, binding = 1) readonly buffer Down { float down[]; }; // [taps, ranks, inputs]
layout(set = 0, binding = 2) writeonly buffer Product { float product[]; };

void main()
{
    uint pair = GROUP_INDEX, i = pair / p.ranks, j = pair % p.ranks;
    if (pair >= p.ranks * p.ranks) return;
    vec2 sum = vec2(0);
    for (uint k = gl_LocalInvocationID.x; k < p.outputs; k += THREADS) sum.x += up[k * p.ranks + i] * up[k * p.ranks + j];
    for (uint t = 0; t < p.taps; t++)
        for (uint k = gl_LocalInvocationID.x; k < p.inputs; k += THREADS)
            sum.y += down[(t * p.ranks + i) * p.inputs + k] * down[(t * p.ranks + j) * p.inputs + k];
    sum = group_sum(sum);
    if (gl_LocalInvocationID.x == 0) product[pair] = sum.x * sum.y;
}
