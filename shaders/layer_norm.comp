#version 450
// Over rows of `width`: y = (x - mean) * rstd * gamma + beta; stats: [rows] of (mean, rstd). One workgroup per row.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint rows, width; float eps; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) writeonly buffer Y { T1 y[]; };
layout(set = 0, binding = 2) readonly buffer Gamma { float gamma[]; };
layout(set = 0, binding = 3) readonly buffer Beta { float beta[]; };
layout(set = 0, binding = 4) writeonly buffer Stats { vec2 stats[]; };

void main()
{
    uint row = GROUP_INDEX, base = row * p.width, t = gl_LocalInvocationID.x;
    if (row >= p.rows) return; // the whole workgroup
    float sum = 0, squares = 0;
    for (uint i = t; i < p.width; i += THREADS) sum += float(x[base + i]);
    float mean = group_sum(vec2(sum, 0)).x / float(p.width);
    for (uint i = t; i < p.width; i += THREADS) {
        float d = float(x[base + i]) - mean;
        squares += d * d;
    }
    float rstd = inversesqrt(group_sum(vec2(squares, 0)).x / float(p.width) + p.eps);
    for (uint i = t; i < p.width; i += THREADS) y[base + i] = T1((float(x[base + i]) - mean) * rstd * gamma[i] + beta[i]);
    if (t == 0) stats[row] = vec2(mean, rstd);
}
