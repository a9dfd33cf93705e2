#version 450
// dx[n, y, x, c] = sum of dy over the pixels that were copied from (y, x).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "nearest.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint images, height, width, out_height, out_width, channels; float ratio_y, ratio_x; } p;
layout(set = 0, binding = 0) readonly buffer DY { T0 dy[]; };
layout(set = 0, binding = 1) writeonly buffer DX { T1 dx[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.images * p.height * p.width * p.channels) return;
    uint c = i % p.channels, pixel = i / p.channels, x = pixel % p.width, y = pixel / p.width % p.height, n = pixel / (p.width * p.height);
    uint y0 = first_copy(y, p.height, p.out_height, p.ratio_y), y1 = first_copy(y + 1, p.height, p.out_height, p.ratio_y);
    uint x0 = first_copy(x, p.width, p.out_width, p.ratio_x), x1 = first_copy(x + 1, p.width, p.out_width, p.ratio_x);
    float sum = 0;
    for (uint oy = y0; oy < y1; oy++)
        for (uint ox = x0; ox < x1; ox++) sum += float(dy[((n * p.out_height + oy) * p.out_width + ox) * p.channels + c]);
    dx[i] = T1(sum);
}
