#version 450
// y = a + scale * b
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint FOUR = 0;
layout(push_constant) uniform Shape { uint count; float scale; } p;
layout(set = 0, binding = 0) readonly buffer A1 { T0 a[]; };
layout(set = 0, binding = 0) readonly buffer A4 { T0_4 a4[]; };
layout(set = 0, binding = 1) readonly buffer B1 { T1 b[]; };
layout(set = 0, binding = 1) readonly buffer B4 { T1_4 b4[]; };
layout(set = 0, binding = 2) writeonly buffer Y1 { T2 y[]; };
layout(set = 0, binding = 2) writeonly buffer Y4 { T2_4 y4[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (FOUR != 0) {
        if (i < p.count / 4) y4[i] = T2_4(vec4(a4[i]) + p.scale * vec4(b4[i]));
    } else if (i < p.count) {
        y[i] = T2(float(a[i]) + p.scale * float(b[i]));
    }
}
