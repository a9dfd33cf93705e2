#version 450
// y[workgroup] = sum over its share of x^2 (+ previous[0] in workgroup 0): the norm of many gradients, one after the other.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint count, has_previous; } p;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Previous { float previous[]; };
layout(set = 0, binding = 2) writeonly buffer Y { float y[]; };

void main()
{
    float sum = 0;
    for (uint i = gl_WorkGroupID.x * THREADS + gl_LocalInvocationID.x; i < p.count; i += gl_NumWorkGroups.x * THREADS) sum += x[i] * x[i];
    sum = group_sum(vec2(sum, 0)).x;
    if (gl_LocalInvocationID.x == 0) y[gl_WorkGroupID.x] = sum + (p.has_previous != 0 && gl_WorkGroupID.x == 0 ? previous[0] : 0.0);
}
