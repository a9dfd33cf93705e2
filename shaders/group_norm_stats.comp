#version 450
// First stage of group norm of large images: mean and sum of squared distances from it, of every channel over one block of pixels.
// part: [images, blocks, channels] of (mean, squares). PIVOT: sums are of differences from the block's first pixel, so that little cancels;
// half floats have no digits that could. WHOLE: pixels is a multiple of LANES * UNROLL.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
layout(constant_id = 1) const uint PIVOT = 1;
layout(constant_id = 2) const uint WHOLE = 0;
#include "elements.glsl"
const uint UNROLL = 4;
#include "group_pixels.glsl"
#include "column_sum.glsl"
layout(push_constant) uniform Shape { uint pixels, steps, block, blocks; } p;
INPUT(0, x, T0)
layout(set = 0, binding = 1) writeonly buffer Part { vec2 part[]; };
shared vec4 pivots[COLUMNS * FOURS];

void main()
{
    uint t = gl_LocalInvocationID.x, column = min(gl_WorkGroupID.x * COLUMNS + t % COLUMNS, p.steps - 1), lane = t / COLUMNS;
    uint first = gl_WorkGroupID.y * p.block, last = min(first + p.block, p.pixels), base = gl_WorkGroupID.z * p.pixels * p.steps + column;
    vec4 pivot[FOURS], sum[FOURS], squares[FOURS];
    EACH_FOUR {
        pivot[k] = PIVOT != 0 ? x(base + first * p.steps, k) : vec4(0);
        sum[k] = squares[k] = vec4(0);
        if (lane == 0) pivots[t * FOURS + k] = pivot[k];
    }
    for (uint pixel = first + lane; pixel < last; pixel += LANES * UNROLL) {
        vec4 v[UNROLL * FOURS];
        EACH_PIXEL EACH_FOUR v[j * FOURS + k] = x(base + CLAMPED(pixel) * p.steps, k);
        EACH_PIXEL EACH_FOUR {
            vec4 d = v[j * FOURS + k] - pivot[k];
            if (!INSIDE(pixel)) d = vec4(0);
            sum[k] += d;
            squares[k] += d * d;
        }
    }
    column_sums(sum, squares);
    uint c = gl_WorkGroupID.x * COLUMNS * STEP + t;
    if (t >= COLUMNS * STEP || c >= p.steps * STEP) return;
    vec2 s = column_total(t);
    float n = float(last - first), from = STEP == 1 ? pivots[t].x : pivots[t / 4][t % 4];
    part[(gl_WorkGroupID.z * p.blocks + gl_WorkGroupID.y) * p.steps * STEP + c] = vec2(from + s.x / n, max(s.y - s.x * s.x / n, 0.0));
}
