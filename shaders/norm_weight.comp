#version 450
// Parts of the gradients of gamma and beta: the sums of h * xh and h of every channel over one block of pixels; xh = (x - mean) * rstd, h = dy *
// act'(xh * gamma + beta). Laid out and launched as group_norm_stats. OF_ROWS: a layer norm's, each row has statistics of its own.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
layout(constant_id = 1) const uint SILU = 0;
layout(constant_id = 2) const uint WHOLE = 0;
layout(constant_id = 3) const uint OF_ROWS = 0;
#include "elements.glsl"
const uint UNROLL = 2;
#include "group_pixels.glsl"
#include "column_sum.glsl"
layout(push_constant) uniform Shape { uint pixels, steps, block, blocks, groups, width_factor, width_shift; } p;
INPUT(0, x, T0)
INPUT(1, dy, T1)
INPUT(2, gamma, float)
INPUT(3, beta, float)
layout(set = 0, binding = 4) readonly buffer Stats { vec2 stats[]; };
layout(set = 0, binding = 5) writeonly buffer Part { vec2 part[]; };

void main()
{
    uint t = gl_LocalInvocationID.x, column = min(gl_WorkGroupID.x * COLUMNS + t % COLUMNS, p.steps - 1), n = gl_WorkGroupID.z;
    uint first = gl_WorkGroupID.y * p.block, last = min(first + p.block, p.pixels), base = n * p.pixels * p.steps + column;
    vec4 mean[FOURS], rstd[FOURS], a[FOURS], b[FOURS], sum[FOURS], sum_x[FOURS];
    EACH_FOUR {
        mean[k] = sum[k] = sum_x[k] = vec4(0);
        rstd[k] = vec4(1);
        if (OF_ROWS == 0) [[unroll]] for (uint e = 0; e < min(STEP, 4); e++) {
            vec2 s = stats[n * p.groups + GROUP_OF(column * STEP + k * 4 + e)];
            mean[k][e] = s.x;
            rstd[k][e] = s.y;
        }
        if (SILU != 0) {
            a[k] = rstd[k] * gamma(column, k);
            b[k] = beta(column, k);
        }
    }
    for (uint pixel = first + t / COLUMNS; pixel < last; pixel += LANES * UNROLL) {
        vec4 v[UNROLL * FOURS], g[UNROLL * FOURS];
        vec2 row[UNROLL];
        EACH_PIXEL EACH_FOUR v[j * FOURS + k] = x(base + CLAMPED(pixel) * p.steps, k);
        EACH_PIXEL EACH_FOUR g[j * FOURS + k] = dy(base + CLAMPED(pixel) * p.steps, k);
        if (OF_ROWS != 0) EACH_PIXEL row[j] = stats[CLAMPED(pixel)];
        EACH_PIXEL EACH_FOUR {
            vec4 d = OF_ROWS != 0 ? (v[j * FOURS + k] - row[j].x) * row[j].y : v[j * FOURS + k] - mean[k], h = g[j * FOURS + k];
            if (SILU != 0) h *= silu_slope(d * a[k] + b[k]);
            if (!INSIDE(pixel)) h = vec4(0);
            sum[k] += h;
            sum_x[k] += h * d;
        }
    }
    EACH_FOUR sum_x[k] *= rstd[k]; // of xh, which belongs to the channel
    column_sums(sum_x, sum);
    uint c = gl_WorkGroupID.x * COLUMNS * STEP + t;
    if (t < COLUMNS * STEP && c < p.steps * STEP)
        part[(n * p.blocks + gl_WorkGroupID.y) * p.steps * STEP + c] = column_total(t);
}
