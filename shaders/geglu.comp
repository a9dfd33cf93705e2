#version 450
// x: [rows, 2 * half]: value, gate. y = value * gelu(gate): [rows, half].
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint FOUR = 0; // 1: half is a multiple of four
layout(push_constant) uniform Shape { uint rows, half_width; } p;
layout(set = 0, binding = 0) readonly buffer X1 { T0 x[]; };
layout(set = 0, binding = 0) readonly buffer X4 { T0_4 x4[]; };
layout(set = 0, binding = 1) writeonly buffer Y1 { T1 y[]; };
layout(set = 0, binding = 1) writeonly buffer Y4 { T1_4 y4[]; };

void main()
{
    uint i = THREAD_INDEX, half_width = p.half_width / (FOUR != 0 ? 4 : 1);
    if (i >= p.rows * half_width) return;
    uint at = i + i / half_width * half_width; // of the value; the gate is half a row further
    if (FOUR != 0) y4[i] = T1_4(vec4(x4[at]) * gelu(vec4(x4[at + half_width])));
    else y[i] = T1(float(x[at]) * gelu(vec4(float(x[at + half_width]))).x);
}
