#version 450
// The gradient of one factor of a product: scale times the sum over everything it was multiplied with (ops/products.c).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
struct Axis { uint self, self_stride, other, other_stride, paired; };
layout(push_constant) uniform Shape {
    uint taps, taps_self, taps_other, height, width;
    Axis rows, columns;
    uint accumulate;
    float scale;
} p;
layout(set = 0, binding = 0) readonly buffer G { float g[]; };
layout(set = 0, binding = 1) readonly buffer Other { float other[]; };
layout(set = 0, binding = 2) buffer Y { float y[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.taps_self * p.rows.self * p.columns.self) return;
    uint column = i % p.columns.self, row = i / p.columns.self % p.rows.self, tap = i / p.columns.self / p.rows.self;
    uint other_rows = p.rows.paired != 0 ? p.rows.self : p.rows.other, other_columns = p.columns.paired != 0 ? p.columns.self : p.columns.other;
    uint first = p.taps_self == 1 ? 0 : tap, end = p.taps_self == 1 ? p.taps : tap + 1;
    float sum = 0;
    for (uint s = first; s < end; s++)
        for (uint k = 0; k < p.rows.other; k++) {
            uint line = (s * p.height + row * p.rows.self_stride + k * p.rows.other_stride) * p.width + column * p.columns.self_stride;
            uint factor = ((p.taps_other == 1 ? 0 : s) * other_rows + (p.rows.paired != 0 ? row : k)) * other_columns;
            if (p.columns.paired != 0) factor += column;
            for (uint l = 0; l < p.columns.other; l++) sum += g[line + l * p.columns.other_stride] * other[factor + l];
        }
    y[i] = (p.accumulate != 0 ? y[i] : 0.0) + p.scale * sum;
}
