#version 450
// y[n, c] = sum over pixels of x[n, pixel, c]. Workgroup (steps / COLUMNS, images).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1; // divides the channels
layout(constant_id = 1) const uint WHOLE = 0;
#include "elements.glsl"
const uint UNROLL = 4;
#include "group_pixels.glsl"
#include "column_sum.glsl"
layout(push_constant) uniform Shape { uint pixels, steps; } p;
INPUT(0, x, T0)
layout(set = 0, binding = 1) writeonly buffer Y { T1 y[]; };

void main()
{
    uint t = gl_LocalInvocationID.x, column = min(gl_WorkGroupID.x * COLUMNS + t % COLUMNS, p.steps - 1), n = gl_WorkGroupID.y;
    uint last = p.pixels, base = n * p.pixels * p.steps + column;
    vec4 sum[FOURS], none[FOURS];
    EACH_FOUR sum[k] = none[k] = vec4(0);
    for (uint pixel = t / COLUMNS; pixel < last; pixel += LANES * UNROLL) {
        vec4 v[UNROLL * FOURS];
        EACH_PIXEL EACH_FOUR v[j * FOURS + k] = x(base + CLAMPED(pixel) * p.steps, k);
        EACH_PIXEL EACH_FOUR {
            if (!INSIDE(pixel)) v[j * FOURS + k] = vec4(0);
            sum[k] += v[j * FOURS + k];
        }
    }
    column_sums(sum, none);
    uint c = gl_WorkGroupID.x * COLUMNS * STEP + t;
    if (t < COLUMNS * STEP && c < p.steps * STEP) y[n * p.steps * STEP + c] = T1(column_total(t).x);
}
