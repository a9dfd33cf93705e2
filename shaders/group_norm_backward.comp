#version 450
// All of group norm's gradient at once, for small images: dx = rstd * (g - mean(g) - xh * mean(g * xh)) (+ prior: PRIOR), xh = (x - mean) *
// rstd, g = gamma * dy * act'(xh * gamma + beta).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint STEP = 1;
layout(constant_id = 2) const uint COLUMNS = 1;
layout(constant_id = 3) const uint CHUNKS = 1;
layout(constant_id = 4) const uint SILU = 0;
layout(constant_id = 5) const uint PRIOR = 0;
#include "elements.glsl"
#include "group_sum.glsl"
#include "group_in_workgroup.glsl"
layout(push_constant) uniform Shape { uint pixels, groups; float scale; } p;
INPUT(0, x, T0)
INPUT(1, dy, T1)
OUTPUT(2, dx, T2)
INPUT(3, gamma, float)
INPUT(4, beta, float)
layout(set = 0, binding = 5) readonly buffer Stats { vec2 stats[]; };
INPUT(6, prior, T2)

void main()
{
    vec2 s = stats[gl_WorkGroupID.y * p.groups + gl_WorkGroupID.x];
    vec4 v[CHUNKS * FOURS], g[CHUNKS * FOURS], a[FOURS], b[FOURS];
    EACH_CHUNK EACH_FOUR v[c * FOURS + k] = x(AT(CLAMPED(c)), k);
    EACH_CHUNK EACH_FOUR g[c * FOURS + k] = dy(AT(CLAMPED(c)), k);
    EACH_FOUR a[k] = gamma(gl_WorkGroupID.x * COLUMNS + COLUMN, k);
    EACH_FOUR b[k] = beta(gl_WorkGroupID.x * COLUMNS + COLUMN, k);
    vec2 sum = vec2(0);
    EACH_CHUNK {
        vec2 part = vec2(0);
        EACH_FOUR {
            uint at = c * FOURS + k;
            v[at] = (v[at] - s.x) * s.y;
            if (SILU != 0) g[at] *= silu_slope(v[at] * a[k] + b[k]);
            g[at] *= a[k];
            part += vec2(sum_of(g[at]), sum_of(g[at] * v[at]));
        }
        sum += PIXEL(c) < p.pixels ? part : vec2(0);
    }
    vec2 means = group_sum(sum) * p.scale;
    EACH_CHUNK {
        if (PIXEL(c) >= p.pixels) break;
        vec4 r[FOURS];
        EACH_FOUR r[k] = s.y * (g[c * FOURS + k] - means.x - v[c * FOURS + k] * means.y);
        if (PRIOR != 0) EACH_FOUR r[k] += prior(AT(PIXEL(c)), k);
        EACH_FOUR dx(AT(PIXEL(c)), k, r[k]);
    }
}
