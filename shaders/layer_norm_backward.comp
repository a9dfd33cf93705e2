#version 450
// dx = rstd * (g - mean(g) - xh * mean(g * xh)) (+ prior: PRIOR), g = gamma * dy, xh = (x - mean) * rstd. Threads take rows as in layer_norm.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint STEP = 1;
layout(constant_id = 2) const uint LANES = 64;
layout(constant_id = 3) const uint CHUNKS = 1;
layout(constant_id = 4) const uint PRIOR = 0;
#include "elements.glsl"
#include "row_sum.glsl"
layout(push_constant) uniform Shape { uint rows, steps; float scale; } p; // as layer_norm
INPUT(0, x, T0)
INPUT(1, dy, T1)
OUTPUT(2, dx, T2)
INPUT(3, gamma, float)
layout(set = 0, binding = 4) readonly buffer Stats { vec2 stats[]; };
INPUT(5, prior, T2)

void main()
{
    uint lane = gl_LocalInvocationID.x % LANES, row = GROUP_INDEX * (THREADS / LANES) + gl_LocalInvocationID.x / LANES;
    uint base = min(row, p.rows - 1) * p.steps;
    vec4 v[CHUNKS * FOURS], g[CHUNKS * FOURS];
    EACH_CHUNK EACH_FOUR v[c * FOURS + k] = x(base + step_of(c, lane, p.steps), k);
    EACH_CHUNK EACH_FOUR g[c * FOURS + k] = dy(base + step_of(c, lane, p.steps), k);
    vec2 s = stats[min(row, p.rows - 1)];
    float sum = 0, sum_x = 0;
    EACH_CHUNK {
        float part = 0, part_x = 0;
        EACH_FOUR {
            uint at = c * FOURS + k;
            v[at] -= s.x;
            g[at] *= gamma(step_of(c, lane, p.steps), k);
            part += sum_of(g[at]);
            part_x += sum_of(g[at] * v[at]);
        }
        sum += inside(c, lane, p.steps) ? part : 0.0;
        sum_x += inside(c, lane, p.steps) ? part_x : 0.0;
    }
    float mean = row_sum(sum) * p.scale * s.y, mean_x = row_sum(sum_x) * p.scale * s.y * s.y * s.y;
    if (row >= p.rows) return;
    EACH_CHUNK {
        uint i = lane + c * LANES;
        if (i >= p.steps) continue;
        vec4 r[FOURS];
        EACH_FOUR r[k] = s.y * g[c * FOURS + k] - mean - v[c * FOURS + k] * mean_x;
        if (PRIOR != 0) EACH_FOUR r[k] += prior(base + i, k);
        EACH_FOUR dx(base + i, k, r[k]);
    }
}
