#version 450
// y = scale a b: rows and columns of the factors either paired or crossed, a's index the slow one (ops/products.c).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape {
    uint taps, taps_a, taps_b, rows_a, columns_a, rows_b, columns_b, paired_rows, paired_columns;
    float scale;
} p;
layout(set = 0, binding = 0) readonly buffer A { float a[]; };
layout(set = 0, binding = 1) readonly buffer B { float b[]; };
layout(set = 0, binding = 2) writeonly buffer Y { T0 y[]; };

void main()
{
    uint i = THREAD_INDEX;
    uint rows = p.rows_a * (p.paired_rows != 0 ? 1 : p.rows_b), columns = p.columns_a * (p.paired_columns != 0 ? 1 : p.columns_b);
    if (i >= p.taps * rows * columns) return;
    uint column = i % columns, row = i / columns % rows, tap = i / columns / rows;
    uint row_a = p.paired_rows != 0 ? row : row / p.rows_b, row_b = p.paired_rows != 0 ? row : row % p.rows_b;
    uint column_a = p.paired_columns != 0 ? column : column / p.columns_b, column_b = p.paired_columns != 0 ? column : column % p.columns_b;
    float fa = a[((p.taps_a > 1 ? tap : 0) * p.rows_a + row_a) * p.columns_a + column_a];
    float fb = b[((p.taps_b > 1 ? tap : 0) * p.rows_b + row_b) * p.columns_b + column_b];
    y[i] = T0(p.scale * fa * fb);
}
