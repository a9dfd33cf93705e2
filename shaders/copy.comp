#version 450
// A range of columns from one matrix to another, converted: y[row, to + j] = x[row, from + j], j < width. Concatenation and slices of channels.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint FOUR = 0; // 1: all sizes are multiples of four
layout(push_constant) uniform Shape { uint rows, width, x_pitch, from, y_pitch, to; } p;
layout(set = 0, binding = 0) readonly buffer X1 { T0 x[]; };
layout(set = 0, binding = 0) readonly buffer X4 { T0_4 x4[]; };
layout(set = 0, binding = 1) writeonly buffer Y1 { T1 y[]; };
layout(set = 0, binding = 1) writeonly buffer Y4 { T1_4 y4[]; };

void main()
{
    uint i = THREAD_INDEX, four = FOUR != 0 ? 4 : 1, width = p.width / four;
    if (i >= p.rows * width) return;
    uint row = i / width, j = i % width;
    uint source = row * (p.x_pitch / four) + p.from / four + j, target = row * (p.y_pitch / four) + p.to / four + j;
    if (FOUR != 0) y4[target] = T1_4(vec4(x4[source]));
    else y[target] = T1(float(x[source]));
}
