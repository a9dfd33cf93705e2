#version 450
// C[t] = scale A[t] B[t], or C += ..., or the sum over t: small fp32 matrices in any order of elements. A workgroup makes 16 x 16 elements.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 16, local_size_y = 16) in;
layout(push_constant) uniform Shape {
    uint taps, m, n, k, tap_a, row_a, column_a, tap_b, row_b, column_b, sum_taps, accumulate;
    float scale;
} p;
layout(set = 0, binding = 0) readonly buffer A { float a[]; };
layout(set = 0, binding = 1) readonly buffer B { float b[]; };
layout(set = 0, binding = 2) buffer C { T0 c[]; };
shared float left[16][17], right[16][17];

void main()
{
    uint x = gl_LocalInvocationID.x, y = gl_LocalInvocationID.y;
    uint row = gl_WorkGroupID.y * 16 + y, column = gl_WorkGroupID.x * 16 + x;
    uint first = p.sum_taps != 0 ? 0 : gl_WorkGroupID.z, end = p.sum_taps != 0 ? p.taps : first + 1;
    float sum = 0;
    for (uint tap = first; tap < end; tap++)
        for (uint at = 0; at < p.k; at += 16) {
            left[y][x] = row < p.m && at + x < p.k ? a[tap * p.tap_a + row * p.row_a + (at + x) * p.column_a] : 0.0;
            right[y][x] = column < p.n && at + y < p.k ? b[tap * p.tap_b + (at + y) * p.row_b + column * p.column_b] : 0.0;
            barrier();
            [[unroll]] for (uint i = 0; i < 16; i++) sum += left[y][i] * right[i][x];
            barrier();
        }
    if (row >= p.m || column >= p.n) return;
    uint at = ((p.sum_taps != 0 ? 0 : gl_WorkGroupID.z) * p.m + row) * p.n + column;
    c[at] = T0((p.accumulate != 0 ? float(c[at]) : 0.0) + p.scale * sum);
}
