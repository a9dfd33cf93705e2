#version 450
// y[workgroup] = sum over its share of x^2: the norm of many gradients, which grad_norm ends.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint STEP = 1;
#include "elements.glsl"
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint steps; } p;
INPUT(0, x, float)
layout(set = 0, binding = 1) writeonly buffer Y { float y[]; };

void main()
{
    float sum = 0;
    for (uint i = gl_WorkGroupID.x * THREADS + gl_LocalInvocationID.x; i < p.steps; i += gl_NumWorkGroups.x * THREADS) {
        vec4 v[FOURS];
        EACH_FOUR v[k] = x(i, k);
        EACH_FOUR sum += sum_of(v[k] * v[k]);
    }
    sum = group_sum(vec2(sum, 0)).x;
    if (gl_LocalInvocationID.x == 0) y[gl_WorkGroupID.x] = sum;
}
