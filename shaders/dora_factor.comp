#version 450
// norm = sqrt of the sum of its parts, factor = magnitude / (norm + eps)
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint count, parts; float eps; } p;
layout(set = 0, binding = 0) readonly buffer Part { float part[]; };
layout(set = 0, binding = 1) readonly buffer Magnitude { float magnitude[]; };
layout(set = 0, binding = 2) writeonly buffer Factor { float factor[]; };
layout(set = 0, binding = 3) writeonly buffer Norm { float norm[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.count) return;
    float sum = 0;
    for (uint k = 0; k < p.parts; k++) sum += part[k * p.count + i];
    float n = sqrt(sum);
    norm[i] = n;
    factor[i] = magnitude[i] / (n + p.eps);
}
