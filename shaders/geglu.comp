#version 450
// x: [rows, 2 * width]: value, gate. y = value * gelu(gate): [rows, width].
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1; // divides width
#include "elements.glsl"
layout(push_constant) uniform Shape { uint steps, width, width_factor, width_shift; } p; // steps of y, and of a row of it
INPUT(0, x, T0)
OUTPUT(1, y, T1)

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.steps) return;
    uint at = i + quotient(i, p.width_factor, p.width_shift) * p.width; // of the value; the gate is half a row further
    vec4 value[FOURS], gate[FOURS];
    EACH_FOUR value[k] = x(at, k);
    EACH_FOUR gate[k] = x(at + p.width, k);
    EACH_FOUR y(i, k, value[k] * gelu(gate[k]));
}
