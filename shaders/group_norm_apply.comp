#version 450
// Last stage: y = act((x - mean) * rstd * gamma + beta), act: nothing or SiLU.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
layout(constant_id = 1) const uint SILU = 0;
layout(constant_id = 2) const uint WHOLE = 0;
#include "elements.glsl"
const uint UNROLL = 4;
#include "group_pixels.glsl"
layout(push_constant) uniform Shape { uint pixels, steps, block, blocks, groups, width_factor, width_shift; } p;
INPUT(0, x, T0)
OUTPUT(1, y, T1)
INPUT(2, gamma, float)
INPUT(3, beta, float)
layout(set = 0, binding = 4) readonly buffer Stats { vec2 stats[]; };

void main()
{
    uint t = gl_LocalInvocationID.x, column = gl_WorkGroupID.x * COLUMNS + t % COLUMNS, n = gl_WorkGroupID.z;
    uint first = gl_WorkGroupID.y * p.block, last = min(first + p.block, p.pixels), base = n * p.pixels * p.steps + column;
    if (column >= p.steps) return;
    vec4 a[FOURS], b[FOURS];
    EACH_FOUR {
        vec4 mean = vec4(0), rstd = vec4(0);
        [[unroll]] for (uint e = 0; e < min(STEP, 4); e++) {
            vec2 s = stats[n * p.groups + GROUP_OF(column * STEP + k * 4 + e)];
            mean[e] = s.x;
            rstd[e] = s.y;
        }
        a[k] = rstd * gamma(column, k);
        b[k] = beta(column, k) - mean * a[k];
        if (SILU != 0) {
            a[k] *= TO_EXP2;
            b[k] *= TO_EXP2;
        }
    }
    for (uint pixel = first + t / COLUMNS; pixel < last; pixel += LANES * UNROLL) {
        vec4 v[UNROLL * FOURS];
        EACH_PIXEL EACH_FOUR v[j * FOURS + k] = x(base + CLAMPED(pixel) * p.steps, k);
        EACH_PIXEL EACH_FOUR {
            vec4 z = v[j * FOURS + k] * a[k] + b[k];
            v[j * FOURS + k] = SILU != 0 ? silu_of(z) : z;
        }
        EACH_PIXEL if (INSIDE(pixel)) EACH_FOUR y(base + (pixel + j * LANES) * p.steps, k, v[j * FOURS + k]);
    }
}
