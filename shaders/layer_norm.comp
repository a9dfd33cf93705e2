#version 450
// Over rows of `steps` steps: y = (x - mean) * rstd * gamma + beta; stats: [rows] of (mean, rstd). LANES threads take a row, which stays in
// registers between the two sums: a thread has CHUNKS steps of it, LANES apart.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint STEP = 1;
layout(constant_id = 2) const uint LANES = 64;
layout(constant_id = 3) const uint CHUNKS = 1;
#include "elements.glsl"
#include "row_sum.glsl"
layout(push_constant) uniform Shape { uint rows, steps; float scale, eps; } p; // scale: 1 / elements of a row
INPUT(0, x, T0)
OUTPUT(1, y, T1)
INPUT(2, gamma, float)
INPUT(3, beta, float)
layout(set = 0, binding = 4) writeonly buffer Stats { vec2 stats[]; };

void main()
{
    uint lane = gl_LocalInvocationID.x % LANES, row = GROUP_INDEX * (THREADS / LANES) + gl_LocalInvocationID.x / LANES;
    uint base = min(row, p.rows - 1) * p.steps;
    vec4 v[CHUNKS * FOURS];
    EACH_CHUNK EACH_FOUR v[c * FOURS + k] = x(base + step_of(c, lane, p.steps), k);
    float sum = 0, squares = 0;
    EACH_CHUNK {
        float part = 0;
        EACH_FOUR part += sum_of(v[c * FOURS + k]);
        sum += inside(c, lane, p.steps) ? part : 0.0;
    }
    float mean = row_sum(sum) * p.scale;
    EACH_CHUNK {
        float part = 0;
        EACH_FOUR {
            vec4 d = v[c * FOURS + k] - mean;
            part += sum_of(d * d);
        }
        squares += inside(c, lane, p.steps) ? part : 0.0;
    }
    float rstd = inversesqrt(row_sum(squares) * p.scale + p.eps);
    if (row >= p.rows) return;
    EACH_CHUNK {
        uint i = lane + c * LANES;
        if (i < p.steps) EACH_FOUR y(base + i, k, (v[c * FOURS + k] - mean) * (rstd * gamma(i, k)) + beta(i, k));
    }
    if (lane == 0) stats[row] = vec2(mean, rstd);
}
