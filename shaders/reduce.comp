#version 450
// y[o, i] = (accumulate: y[o, i]) + sum over s of part[o, s, i]: the second stage of split sums. fp32, always in the same order.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint outer, splits, inner, accumulate; } p;
layout(set = 0, binding = 0) readonly buffer Part { float part[]; };
layout(set = 0, binding = 1) buffer Y { float y[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.outer * p.inner) return;
    uint at = i / p.inner * p.splits * p.inner + i % p.inner;
    float sum = 0;
    for (uint s = 0; s < p.splits; s++) sum += part[at + s * p.inner];
    y[i] = p.accumulate != 0 ? y[i] + sum : sum;
}
