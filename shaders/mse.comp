#version 450
// First stage of a mean of squared differences: part[workgroup] = sum over its share of (a - b)^2 / count. One workgroup: the mean.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint STEP = 1;
#include "elements.glsl"
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint steps; float scale; } p; // scale: 1 / count
INPUT(0, a, T0)
INPUT(1, b, T1)
layout(set = 0, binding = 2) writeonly buffer Part { float part[]; };

void main()
{
    float sum = 0;
    for (uint i = gl_WorkGroupID.x * THREADS + gl_LocalInvocationID.x; i < p.steps; i += gl_NumWorkGroups.x * THREADS) {
        vec4 d[FOURS];
        EACH_FOUR d[k] = a(i, k);
        EACH_FOUR d[k] -= b(i, k);
        EACH_FOUR sum += sum_of(d[k] * d[k]);
    }
    sum = group_sum(vec2(sum, 0)).x;
    if (gl_LocalInvocationID.x == 0) part[gl_WorkGroupID.x] = sum * p.scale;
}
