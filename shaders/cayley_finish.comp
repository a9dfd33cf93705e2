#version 450
// db from the gradient of Q in the scratch memory: where the norm of Q was limited, less what points along Q.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "cayley.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint blocks, size; float limit; uint accumulate; } p;
layout(set = 0, binding = 0) readonly buffer B { float b[]; };
layout(set = 0, binding = 1) readonly buffer Scratch { float scratch[]; };
layout(set = 0, binding = 2) buffer Y { float y[]; };

void main()
{
    uint at = THREAD_INDEX, area = p.size * p.size;
    if (at >= p.blocks * area) return;
    float f = scratch[SUMS + at];
    if (p.limit > 0) {
        float factor = shrink(p.limit, scratch[0]);
        float q = b[at] - b[at / area * area + at % p.size * p.size + at % area / p.size];
        if (factor < 1) f = factor * (f - 2.0 * q * scratch[1] / scratch[0]);
    }
    y[at] = (p.accumulate != 0 ? y[at] : 0.0) + f;
}
