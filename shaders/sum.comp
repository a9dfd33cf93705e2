#version 450
// y[0] = sum of x: the last stage of reductions. One workgroup.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint count; } p;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) writeonly buffer Y { float y[]; };

void main()
{
    float sum = 0;
    for (uint i = gl_LocalInvocationID.x; i < p.count; i += THREADS) sum += x[i];
    sum = group_sum(vec2(sum, 0)).x;
    if (gl_LocalInvocationID.x == 0) y[0] = sum;
}
