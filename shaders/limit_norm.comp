#version 450
// param *= (limit / n)^exponent where n = scale sqrt(square_sum) is above the limit.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint count; float scale, limit, exponent; } p;
layout(set = 0, binding = 0) buffer Param { float param[]; };
layout(set = 0, binding = 1) readonly buffer Sum { float square_sum[]; };

void main()
{
    uint i = THREAD_INDEX;
    float n = p.scale * sqrt(max(square_sum[0], 0.0));
    if (i < p.count && n > p.limit) param[i] *= pow(p.limit / n, p.exponent);
}
