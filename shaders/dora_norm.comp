#version 450
// Parts of the sums of (w + d)^2: of columns, part[chunk, column] over a chunk's rows (a workgroup takes 16 columns, 8 threads share a
// column); or of rows, part[row].
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint OF_ROWS = 0;
layout(constant_id = 1) const uint CHANGED = 1; // 0: of w alone
layout(push_constant) uniform Shape { uint rows, columns, chunk; } p;
layout(set = 0, binding = 0) readonly buffer W { T0 w[]; };
layout(set = 0, binding = 1) readonly buffer D { float d[]; };
layout(set = 0, binding = 2) writeonly buffer Part { float part[]; };
shared float sums[128];

float square(uint at)
{
    float v = float(w[at]);
    if (CHANGED != 0) v += d[at];
    return v * v;
}

void main()
{
    uint t = gl_LocalInvocationID.x;
    float sum = 0;
    if (OF_ROWS != 0) {
        uint row = GROUP_INDEX;
        if (row >= p.rows) return;
        for (uint j = t; j < p.columns; j += 128) sum += square(row * p.columns + j);
        sums[t] = sum;
        for (uint step = 64; step > 0; step /= 2) {
            barrier();
            if (t < step) sums[t] += sums[t + step];
        }
        if (t == 0) part[row] = sums[0];
        return;
    }
    uint column = gl_WorkGroupID.x * 16 + t % 16, at = min(column, p.columns - 1);
    uint first = gl_WorkGroupID.y * p.chunk, end = min(first + p.chunk, p.rows);
    for (uint row = first + t / 16; row < end; row += 8) sum += square(row * p.columns + at);
    sums[t] = sum;
    barrier();
    if (t < 16 && column < p.columns) {
        for (uint i = 1; i < 8; i++) sum += sums[t + 16 * i];
        part[gl_WorkGroupID.y * p.columns + column] = sum;
    }
}
