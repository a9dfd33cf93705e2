#version 450
// y = a + scale * b
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint count; float scale; } p;
INPUT(0, a, T0)
INPUT(1, b, T1)
OUTPUT(2, y, T2)

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.count / STEP) return;
    vec4 v[FOURS], w[FOURS];
    EACH_FOUR v[k] = a(i, k);
    EACH_FOUR w[k] = b(i, k);
    EACH_FOUR y(i, k, v[k] + p.scale * w[k]);
}
