#version 450
// dx = rstd * (g - mean(g) - xh * mean(g * xh)) (+ prior: PRIOR); see group_norm_backward_stats. means: [images, groups] of (mean(g),
// mean(g * xh)).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
layout(constant_id = 1) const uint SILU = 0;
layout(constant_id = 2) const uint WHOLE = 0;
layout(constant_id = 3) const uint PRIOR = 0;
#include "elements.glsl"
const uint UNROLL = 2;
#include "group_pixels.glsl"
layout(push_constant) uniform Shape { uint pixels, steps, block, blocks, groups, width_factor, width_shift; } p;
INPUT(0, x, T0)
INPUT(1, dy, T1)
OUTPUT(2, dx, T2)
INPUT(3, gamma, float)
INPUT(4, beta, float)
layout(set = 0, binding = 5) readonly buffer Stats { vec2 stats[]; };
layout(set = 0, binding = 6) readonly buffer Means { vec2 means[]; };
INPUT(7, prior, T2)

void main()
{
    uint t = gl_LocalInvocationID.x, column = gl_WorkGroupID.x * COLUMNS + t % COLUMNS, n = gl_WorkGroupID.z;
    uint first = gl_WorkGroupID.y * p.block, last = min(first + p.block, p.pixels), base = n * p.pixels * p.steps + column;
    if (column >= p.steps) return;
    vec4 mean[FOURS], a[FOURS], b[FOURS], less[FOURS], less_x[FOURS]; // dx = a * dy * act' - less - (x - mean) * less_x
    EACH_FOUR {
        vec4 rstd = vec4(0), g = vec4(0), gx = vec4(0);
        mean[k] = vec4(0);
        [[unroll]] for (uint e = 0; e < min(STEP, 4); e++) {
            uint group = n * p.groups + GROUP_OF(column * STEP + k * 4 + e);
            vec2 s = stats[group], m = means[group];
            mean[k][e] = s.x;
            rstd[e] = s.y;
            g[e] = m.x;
            gx[e] = m.y;
        }
        a[k] = rstd * gamma(column, k);
        b[k] = beta(column, k);
        less[k] = rstd * g;
        less_x[k] = rstd * rstd * gx;
    }
    for (uint pixel = first + t / COLUMNS; pixel < last; pixel += LANES * UNROLL) {
        vec4 v[UNROLL * FOURS], g[UNROLL * FOURS];
        EACH_PIXEL EACH_FOUR v[j * FOURS + k] = x(base + CLAMPED(pixel) * p.steps, k);
        EACH_PIXEL EACH_FOUR g[j * FOURS + k] = dy(base + CLAMPED(pixel) * p.steps, k);
        EACH_PIXEL EACH_FOUR {
            vec4 d = v[j * FOURS + k] - mean[k], h = g[j * FOURS + k];
            if (SILU != 0) h *= silu_slope(d * a[k] + b[k]);
            v[j * FOURS + k] = a[k] * h - less[k] - d * less_x[k];
        }
        if (PRIOR != 0) {
            EACH_PIXEL EACH_FOUR g[j * FOURS + k] = prior(base + CLAMPED(pixel) * p.steps, k);
            EACH_PIXEL EACH_FOUR v[j * FOURS + k] += g[j * FOURS + k];
        }
        EACH_PIXEL if (INSIDE(pixel)) EACH_FOUR dx(base + (pixel + j * LANES) * p.steps, k, v[j * FOURS + k]);
    }
}
