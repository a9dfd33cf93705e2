#version 450
// part[chunk, g, i, j] = sum over the chunk's rows of left[g, i] right[g, j], blocks g taken through a butterfly.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "blocks.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint rows, blocks, size, stride, transposed, chunk; } p;
layout(set = 0, binding = 0) readonly buffer Left { T0 left[]; };
layout(set = 0, binding = 1) readonly buffer Right { T1 right[]; };
layout(set = 0, binding = 2) writeonly buffer Part { float part[]; };

void main()
{
    uint at = gl_WorkGroupID.x * 128 + gl_LocalInvocationID.x, g = gl_WorkGroupID.y, columns = p.blocks * p.size;
    if (at >= p.size * p.size) return;
    uint i = butterfly(g * p.size + at / p.size, p.stride), j = butterfly(g * p.size + at % p.size, p.stride);
    uint first = gl_WorkGroupID.z * p.chunk, end = min(first + p.chunk, p.rows);
    float sum = 0;
    for (uint row = first; row < end; row++) sum += float(left[row * columns + i]) * float(right[row * columns + j]);
    part[(gl_WorkGroupID.z * p.blocks + g) * p.size * p.size + at] = sum;
}
