#version 450
// y = curve(x), element by element.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint KIND = 0;
layout(constant_id = 1) const uint FOUR = 0; // 1: count is a multiple of four, a thread takes four
layout(push_constant) uniform Shape { uint count; } p;
layout(set = 0, binding = 0) readonly buffer X1 { T0 x[]; };
layout(set = 0, binding = 0) readonly buffer X4 { T0_4 x4[]; };
layout(set = 0, binding = 1) writeonly buffer Y1 { T1 y[]; };
layout(set = 0, binding = 1) writeonly buffer Y4 { T1_4 y4[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (FOUR != 0) {
        if (i < p.count / 4) y4[i] = T1_4(curve(KIND, vec4(x4[i])));
    } else if (i < p.count) {
        y[i] = T1(curve(KIND, vec4(float(x[i]))).x);
    }
}
