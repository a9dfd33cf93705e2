#version 450
// y = elements [first, first + count) of x
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint first, count; } p;
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) writeonly buffer Y { float y[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i < p.count) y[i] = x[p.first + i];
}
