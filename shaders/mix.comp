#version 450
// y[.., l, :] = residual + scale sum over m of w[l, m] x[.., m, :]; without w the same blocks in another order.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "blocks.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint WEIGHTED = 1;
layout(constant_id = 1) const uint RESIDUAL = 0;
layout(push_constant) uniform Shape { uint images, pixels, m, l, k, x_first, y_first, transposed; float scale; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) writeonly buffer Y { T1 y[]; };
layout(set = 0, binding = 2) readonly buffer W { float w[]; };
layout(set = 0, binding = 3) readonly buffer Residual { T1 residual[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.images * p.pixels * p.l * p.k) return;
    uint j = i % p.k, row = i / p.k, image, pixel, l;
    if (p.y_first != 0) {
        pixel = row % p.pixels, l = row / p.pixels % p.l, image = row / p.pixels / p.l;
    } else {
        l = row % p.l, pixel = row / p.l % p.pixels, image = row / p.l / p.pixels;
    }
    float sum = 0;
    if (WEIGHTED == 0) {
        sum = float(x[block_at(p.x_first, p.m, p.pixels, p.k, image, pixel, l) + j]);
    } else {
        uint at = block_at(p.x_first, p.m, p.pixels, p.k, image, pixel, 0) + j, step = p.x_first != 0 ? p.pixels * p.k : p.k;
        uint w_at = p.transposed != 0 ? l : l * p.m, w_step = p.transposed != 0 ? p.l : 1;
        for (uint m = 0; m < p.m; m++) sum += w[w_at + m * w_step] * float(x[at + m * step]);
        sum *= p.scale;
    }
    if (RESIDUAL != 0) sum += float(residual[i]);
    y[i] = T1(sum);
}
