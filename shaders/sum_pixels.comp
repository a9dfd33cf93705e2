#version 450
// y[n, c] = sum over pixels of x[n, pixel, c]. A workgroup takes 16 channels of one image, 8 threads share a channel.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint images, pixels, channels; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) writeonly buffer Y { T1 y[]; };
shared float part[128];

void main()
{
    uint t = gl_LocalInvocationID.x, c = gl_WorkGroupID.x * 16 + t % 16, n = gl_WorkGroupID.y;
    uint column = min(c, p.channels - 1);
    float sum = 0;
    for (uint pixel = t / 16; pixel < p.pixels; pixel += 8) sum += float(x[(n * p.pixels + pixel) * p.channels + column]);
    part[t] = sum;
    barrier();
    if (t < 16 && c < p.channels) {
        for (uint i = 1; i < 8; i++) sum += part[t + 16 * i];
        y[n * p.channels + c] = T1(sum);
    }
}
