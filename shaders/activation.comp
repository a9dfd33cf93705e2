#version 450
// y = curve(x), element by element.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint KIND = 0;
layout(constant_id = 1) const uint STEP = 1;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint count; } p;
INPUT(0, x, T0)
OUTPUT(1, y, T1)

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.count / STEP) return;
    vec4 v[FOURS];
    EACH_FOUR v[k] = x(i, k);
    EACH_FOUR y(i, k, curve(KIND, v[k]));
}
