#version 450
// y = (a + b w[column]) x + c residual + bias[column] + shift[image, column]
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint PRESENT = 0; // bits of the bindings 1 to 4 of the op: w, residual, bias, shift
layout(constant_id = 1) const uint FOUR = 0;
layout(push_constant) uniform Shape { uint rows, columns, rows_per_image; float a, b, c; } p;
layout(set = 0, binding = 0) readonly buffer X1 { T0 x[]; };
layout(set = 0, binding = 0) readonly buffer X4 { T0_4 x4[]; };
layout(set = 0, binding = 1) writeonly buffer Y1 { T1 y[]; };
layout(set = 0, binding = 1) writeonly buffer Y4 { T1_4 y4[]; };
layout(set = 0, binding = 2) readonly buffer W1 { float w[]; };
layout(set = 0, binding = 2) readonly buffer W4 { vec4 w4[]; };
layout(set = 0, binding = 3) readonly buffer R1 { T1 residual[]; };
layout(set = 0, binding = 3) readonly buffer R4 { T1_4 residual4[]; };
layout(set = 0, binding = 4) readonly buffer B1 { float bias[]; };
layout(set = 0, binding = 4) readonly buffer B4 { vec4 bias4[]; };
layout(set = 0, binding = 5) readonly buffer S1 { T1 shift[]; };
layout(set = 0, binding = 5) readonly buffer S4 { T1_4 shift4[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (FOUR != 0) {
        uint width = p.columns / 4;
        if (i >= p.rows * width) return;
        uint row = i / width, column = i % width;
        vec4 f = vec4(p.a);
        if ((PRESENT & 2u) != 0) f += p.b * w4[column];
        f *= vec4(x4[i]);
        if ((PRESENT & 4u) != 0) f += p.c * vec4(residual4[i]);
        if ((PRESENT & 8u) != 0) f += bias4[column];
        if ((PRESENT & 16u) != 0) f += vec4(shift4[row / p.rows_per_image * width + column]);
        y4[i] = T1_4(f);
        return;
    }
    if (i >= p.rows * p.columns) return;
    uint row = i / p.columns, column = i % p.columns;
    float f = p.a;
    if ((PRESENT & 2u) != 0) f += p.b * w[column];
    f *= float(x[i]);
    if ((PRESENT & 4u) != 0) f += p.c * float(residual[i]);
    if ((PRESENT & 8u) != 0) f += bias[column];
    if ((PRESENT & 16u) != 0) f += float(shift[row / p.rows_per_image * p.columns + column]);
    y[i] = T1(f);
}
