#version 450
// First stage of a mean of squared differences: part[workgroup] = sum over its share of (a - b)^2 / count.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint count; } p;
layout(set = 0, binding = 0) readonly buffer A { T0 a[]; };
layout(set = 0, binding = 1) readonly buffer B { T1 b[]; };
layout(set = 0, binding = 2) writeonly buffer Part { float part[]; };

void main()
{
    float sum = 0;
    for (uint i = gl_WorkGroupID.x * THREADS + gl_LocalInvocationID.x; i < p.count; i += gl_NumWorkGroups.x * THREADS) {
        float d = float(a[i]) - float(b[i]);
        sum += d * d;
    }
    sum = group_sum(vec2(sum, 0)).x;
    if (gl_LocalInvocationID.x == 0) part[gl_WorkGroupID.x] = sum / float(p.count);
}
