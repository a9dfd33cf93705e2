#version 450
// dx = dy * curve'(x)
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint KIND = 0;
layout(constant_id = 1) const uint STEP = 1;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint count; } p;
INPUT(0, x, T0)
INPUT(1, dy, T1)
OUTPUT(2, dx, T2)

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.count / STEP) return;
    vec4 v[FOURS], d[FOURS];
    EACH_FOUR v[k] = x(i, k);
    EACH_FOUR d[k] = dy(i, k);
    EACH_FOUR dx(i, k, d[k] * curve_slope(KIND, v[k]));
}
