#version 450
// norm[0] = sqrt(sum of parts) / loss scale. One workgroup.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint count; } p;
layout(set = 0, binding = 0) readonly buffer Part { float part[]; };
layout(set = 0, binding = 1) readonly buffer Control { float control[]; }; // as in ops.h, 7: 1 / loss scale
layout(set = 0, binding = 2) writeonly buffer Norm { float norm[]; };

void main()
{
    float sum = 0;
    for (uint i = gl_LocalInvocationID.x; i < p.count; i += THREADS) sum += part[i];
    sum = group_sum(vec2(sum, 0)).x;
    if (gl_LocalInvocationID.x == 0) norm[0] = sqrt(sum) * control[7];
}
