#version 450
// y[g, j] = sum over i of r[g, i, j] x[g, i] (or r[g, j, i]), blocks g taken through a butterfly.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "blocks.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint rows, blocks, size, stride, transposed; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) writeonly buffer Y { T1 y[]; };
layout(set = 0, binding = 2) readonly buffer R { float r[]; };

void main()
{
    uint i = THREAD_INDEX, columns = p.blocks * p.size;
    if (i >= p.rows * columns) return;
    uint row = i / columns * columns, at = butterfly_inverse(i % columns, p.stride), g = at / p.size, j = at % p.size;
    uint matrix = g * p.size * p.size + (p.transposed != 0 ? j * p.size : j), step = p.transposed != 0 ? 1 : p.size;
    float sum = 0;
    for (uint k = 0; k < p.size; k++) sum += r[matrix + k * step] * float(x[row + butterfly(g * p.size + k, p.stride)]);
    y[i] = T1(sum);
}
