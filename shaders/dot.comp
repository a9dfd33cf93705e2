#version 450
// y[0] = (or +=) scale * sum of a[i] b[i]. One workgroup.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint count, accumulate; float scale; } p;
layout(set = 0, binding = 0) readonly buffer A { float a[]; };
layout(set = 0, binding = 1) readonly buffer B { float b[]; };
layout(set = 0, binding = 2) buffer Y { float y[]; };

void main()
{
    float sum = 0;
    for (uint i = gl_LocalInvocationID.x; i < p.count; i += THREADS) sum += a[i] * b[i];
    sum = group_sum(vec2(sum, 0)).x;
    if (gl_LocalInvocationID.x == 0) y[0] = (p.accumulate != 0 ? y[0] : 0.0) + p.scale * sum;
}
