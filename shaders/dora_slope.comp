#version 450
// slope = -df magnitude / ((norm + eps)^2 norm), dmagnitude = (accumulate: dmagnitude) + df / (norm + eps)
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint count, accumulate; float eps; } p;
layout(set = 0, binding = 0) readonly buffer Magnitude { float magnitude[]; };
layout(set = 0, binding = 1) readonly buffer Norm { float norm[]; };
layout(set = 0, binding = 2) readonly buffer Df { float df[]; };
layout(set = 0, binding = 3) writeonly buffer Slope { float slope[]; };
layout(set = 0, binding = 4) buffer Dm { float dm[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.count) return;
    float n = norm[i] + p.eps;
    slope[i] = norm[i] > 0 ? -df[i] * magnitude[i] / (n * n * norm[i]) : 0.0;
    dm[i] = (p.accumulate != 0 ? dm[i] : 0.0) + df[i] / n;
}
