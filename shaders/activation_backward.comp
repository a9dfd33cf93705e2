#version 450
// dx = dy * curve'(x)
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint KIND = 0;
layout(constant_id = 1) const uint FOUR = 0;
layout(push_constant) uniform Shape { uint count; } p;
layout(set = 0, binding = 0) readonly buffer X1 { T0 x[]; };
layout(set = 0, binding = 0) readonly buffer X4 { T0_4 x4[]; };
layout(set = 0, binding = 1) readonly buffer DY1 { T1 dy[]; };
layout(set = 0, binding = 1) readonly buffer DY4 { T1_4 dy4[]; };
layout(set = 0, binding = 2) writeonly buffer DX1 { T2 dx[]; };
layout(set = 0, binding = 2) writeonly buffer DX4 { T2_4 dx4[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (FOUR != 0) {
        if (i < p.count / 4) dx4[i] = T2_4(vec4(dy4[i]) * curve_slope(KIND, vec4(x4[i])));
    } else if (i < p.count) {
        dx[i] = T2(float(dy[i]) * curve_slope(KIND, vec4(float(x[i]))).x);
    }
}
