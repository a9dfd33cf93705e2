#version 450
// da = dloss * scale * (a - b), scale: 2 / count; dloss: [1].
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint steps; float scale; } p;
INPUT(0, a, T0)
INPUT(1, b, T1)
OUTPUT(2, da, T2)
layout(set = 0, binding = 3) readonly buffer DLoss { float dloss[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.steps) return;
    vec4 d[FOURS];
    EACH_FOUR d[k] = a(i, k);
    EACH_FOUR d[k] -= b(i, k);
    EACH_FOUR da(i, k, dloss[0] * p.scale * d[k]);
}
