#version 450
// part[chunk, l, m] = scale times the sum over the chunk's pixels and over k of dy[.., l, k] x[.., m, k]. A workgroup per part.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "blocks.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Shape { uint images, pixels, m, l, k, x_first, y_first, chunk; float scale; } p;
layout(set = 0, binding = 0) readonly buffer Dy { T0 dy[]; };
layout(set = 0, binding = 1) readonly buffer X { T1 x[]; };
layout(set = 0, binding = 2) writeonly buffer Part { float part[]; };
shared float sums[64];

void main()
{
    uint t = gl_LocalInvocationID.x, m = gl_WorkGroupID.x, l = gl_WorkGroupID.y, chunk = gl_WorkGroupID.z;
    uint first = chunk * p.chunk, end = min(first + p.chunk, p.images * p.pixels);
    float sum = 0;
    for (uint at = t; at < (end - first) * p.k; at += 64) {
        uint row = first + at / p.k, j = at % p.k, image = row / p.pixels, pixel = row % p.pixels;
        sum += float(dy[block_at(p.y_first, p.l, p.pixels, p.k, image, pixel, l) + j]) *
               float(x[block_at(p.x_first, p.m, p.pixels, p.k, image, pixel, m) + j]);
    }
    sums[t] = sum;
    for (uint half_count = 32; half_count > 0; half_count /= 2) {
        barrier();
        if (t < half_count) sums[t] += sums[t + half_count];
    }
    if (t == 0) part[(chunk * p.l + l) * p.m + m] = p.scale * sums[0];
}
