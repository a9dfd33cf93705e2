#version 450
// dx = rstd * (g - mean(g) - xh * mean(g * xh)), g = gamma * dy, xh = (x - mean) * rstd. One workgroup per row.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint rows, width; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) readonly buffer DY { T1 dy[]; };
layout(set = 0, binding = 2) writeonly buffer DX { T2 dx[]; };
layout(set = 0, binding = 3) readonly buffer Gamma { float gamma[]; };
layout(set = 0, binding = 4) readonly buffer Stats { vec2 stats[]; };

void main()
{
    uint row = GROUP_INDEX, base = row * p.width, t = gl_LocalInvocationID.x;
    if (row >= p.rows) return;
    vec2 s = stats[row], sum = vec2(0);
    for (uint i = t; i < p.width; i += THREADS) {
        float g = gamma[i] * float(dy[base + i]);
        sum += vec2(g, g * (float(x[base + i]) - s.x) * s.y);
    }
    sum = group_sum(sum) / float(p.width);
    for (uint i = t; i < p.width; i += THREADS) {
        float xh = (float(x[base + i]) - s.x) * s.y;
        dx[base + i] = T2(s.y * (gamma[i] * float(dy[base + i]) - sum.x - xh * sum.y));
    }
}
