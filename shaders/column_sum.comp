#version 450
// part[chunk, column] = factor times the sum over the chunk's rows of x, or of x times y. A workgroup takes 16 columns of one chunk, 8
// threads share a column.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint PRODUCT = 0;
layout(push_constant) uniform Shape { uint rows, columns, chunk; float factor; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) readonly buffer Y { T1 y[]; };
layout(set = 0, binding = 2) writeonly buffer Part { float part[]; };
shared float sums[128];

void main()
{
    uint t = gl_LocalInvocationID.x, column = gl_WorkGroupID.x * 16 + t % 16, at = min(column, p.columns - 1);
    uint first = gl_WorkGroupID.y * p.chunk, end = min(first + p.chunk, p.rows);
    float sum = 0;
    for (uint row = first + t / 16; row < end; row += 8) {
        float f = float(x[row * p.columns + at]);
        if (PRODUCT != 0) f *= float(y[row * p.columns + at]);
        sum += f;
    }
    sums[t] = sum;
    barrier();
    if (t < 16 && column < p.columns) {
        for (uint i = 1; i < 8; i++) sum += sums[t + 16 * i];
        part[gl_WorkGroupID.y * p.columns + column] = p.factor * sum;
    }
}
