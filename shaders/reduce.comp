#version 450
// y[o, i] = (accumulate: y[o, i]) + sum over s of part[o, s, i]: the second stage of split sums. fp32, always in the same order.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1; // divides inner
#include "elements.glsl"
layout(push_constant) uniform Shape { uint outer, splits, inner, inner_factor, inner_shift, accumulate; } p; // inner in steps
INPUT(0, part, float)
layout(set = 0, binding = 1) buffer Y1 { float y1[]; };
layout(set = 0, binding = 1) buffer Y4 { vec4 y4[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.outer * p.inner) return;
    uint at = i + quotient(i, p.inner_factor, p.inner_shift) * (p.splits - 1) * p.inner;
    vec4 sum[FOURS];
    EACH_FOUR sum[k] = vec4(0);
    for (uint s = 0; s < p.splits; s++, at += p.inner) EACH_FOUR sum[k] += part(at, k);
    if (STEP == 1)
        y1[i] = p.accumulate != 0 ? y1[i] + sum[0].x : sum[0].x;
    else
        EACH_FOUR y4[i * FOURS + k] = p.accumulate != 0 ? y4[i * FOURS + k] + sum[k] : sum[k];
}
