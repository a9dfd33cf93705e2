#version 450
// dvalue = dy * gelu(gate), dgate = dy * value * gelu'(gate); dx is laid out as x.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint FOUR = 0;
layout(push_constant) uniform Shape { uint rows, half_width; } p;
layout(set = 0, binding = 0) readonly buffer X1 { T0 x[]; };
layout(set = 0, binding = 0) readonly buffer X4 { T0_4 x4[]; };
layout(set = 0, binding = 1) readonly buffer DY1 { T1 dy[]; };
layout(set = 0, binding = 1) readonly buffer DY4 { T1_4 dy4[]; };
layout(set = 0, binding = 2) writeonly buffer DX1 { T2 dx[]; };
layout(set = 0, binding = 2) writeonly buffer DX4 { T2_4 dx4[]; };

void main()
{
    uint i = THREAD_INDEX, half_width = p.half_width / (FOUR != 0 ? 4 : 1);
    if (i >= p.rows * half_width) return;
    uint at = i + i / half_width * half_width;
    if (FOUR != 0) {
        vec4 value = vec4(x4[at]), gate = vec4(x4[at + half_width]), d = vec4(dy4[i]);
        dx4[at] = T2_4(d * gelu(gate));
        dx4[at + half_width] = T2_4(d * value * gelu_slope(gate));
    } else {
        vec4 value = vec4(float(x[at])), gate = vec4(float(x[at + half_width])), d = vec4(float(dy[i]));
        dx[at] = T2((d * gelu(gate)).x);
        dx[at + half_width] = T2((d * value * gelu_slope(gate)).x);
    }
}
