#version 450
// Nearest neighbour: y[n, oy, ox, c] = x[n, nearest(oy), nearest(ox), c].
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "nearest.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint FOUR = 0; // 1: channels are a multiple of four
layout(push_constant) uniform Shape { uint images, height, width, out_height, out_width, channels; float ratio_y, ratio_x; } p;
layout(set = 0, binding = 0) readonly buffer X1 { T0 x[]; };
layout(set = 0, binding = 0) readonly buffer X4 { T0_4 x4[]; };
layout(set = 0, binding = 1) writeonly buffer Y1 { T1 y[]; };
layout(set = 0, binding = 1) writeonly buffer Y4 { T1_4 y4[]; };

void main()
{
    uint i = THREAD_INDEX, channels = p.channels / (FOUR != 0 ? 4 : 1);
    if (i >= p.images * p.out_height * p.out_width * channels) return;
    uint pixel = i / channels, ox = pixel % p.out_width, oy = pixel / p.out_width % p.out_height, n = pixel / (p.out_width * p.out_height);
    uint row = n * p.height + nearest(oy, p.height, p.ratio_y), source = (row * p.width + nearest(ox, p.width, p.ratio_x)) * channels + i % channels;
    if (FOUR != 0) y4[i] = T1_4(vec4(x4[source]));
    else y[i] = T1(float(x[source]));
}
