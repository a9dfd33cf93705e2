#version 450
// First stage of group norm: mean and sum of squared distances from it over one chunk of pixels of one group.
// x: [images, pixels, groups * width], part: [images, groups, chunks] of (mean, squares). Workgroup (chunk, group, image).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint pixels, groups, width, chunks; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) writeonly buffer Part { vec2 part[]; };

void main()
{
    uint chunk = gl_WorkGroupID.x, group = gl_WorkGroupID.y, n = gl_WorkGroupID.z;
    uint size = (p.pixels + p.chunks - 1) / p.chunks, first = min(chunk * size, p.pixels), last = min(first + size, p.pixels);
    uint channels = p.groups * p.width, count = (last - first) * p.width, base = (n * p.pixels + first) * channels + group * p.width;
    float sum = 0, squares = 0;
    for (uint i = gl_LocalInvocationID.x; i < count; i += THREADS) sum += float(x[base + i / p.width * channels + i % p.width]);
    float mean = group_sum(vec2(sum, 0)).x / float(max(count, 1u));
    for (uint i = gl_LocalInvocationID.x; i < count; i += THREADS) {
        float d = float(x[base + i / p.width * channels + i % p.width]) - mean;
        squares += d * d;
    }
    squares = group_sum(vec2(squares, 0)).x;
    if (gl_LocalInvocationID.x == 0) part[(n * p.groups + group) * p.chunks + chunk] = vec2(mean, squares);
}
