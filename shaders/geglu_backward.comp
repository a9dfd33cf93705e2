#version 450
// dvalue = dy * gelu(gate), dgate = dy * value * gelu'(gate); dx is laid out as x.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint steps, width, width_factor, width_shift; } p; // as geglu
INPUT(0, x, T0)
INPUT(1, dy, T1)
OUTPUT(2, dx, T2)

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.steps) return;
    uint at = i + quotient(i, p.width_factor, p.width_shift) * p.width;
    vec4 value[FOURS], gate[FOURS], d[FOURS];
    EACH_FOUR value[k] = x(at, k);
    EACH_FOUR gate[k] = x(at + p.width, k);
    EACH_FOUR d[k] = dy(i, k);
    EACH_FOUR {
        vec4 share = normal(gate[k]);
        value[k] *= d[k] * gelu_slope(gate[k], share);
        gate[k] *= d[k] * share;
    }
    EACH_FOUR dx(at, k, gate[k]);
    EACH_FOUR dx(at + p.width, k, value[k]);
}
