#version 450
// All of group norm at once, for small images: y = act((x - mean) * rstd * gamma + beta), act: nothing or SiLU. stats: [images, groups] of
// (mean, rstd).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "curves.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint STEP = 1;
layout(constant_id = 2) const uint COLUMNS = 1;
layout(constant_id = 3) const uint CHUNKS = 1;
layout(constant_id = 4) const uint SILU = 0;
#include "elements.glsl"
#include "group_sum.glsl"
#include "group_in_workgroup.glsl"
layout(push_constant) uniform Shape { uint pixels, groups; float scale, eps; } p; // scale: 1 / elements of a group
INPUT(0, x, T0)
OUTPUT(1, y, T1)
INPUT(2, gamma, float)
INPUT(3, beta, float)
layout(set = 0, binding = 4) writeonly buffer Stats { vec2 stats[]; };

void main()
{
    vec4 v[CHUNKS * FOURS], a[FOURS], b[FOURS];
    EACH_CHUNK EACH_FOUR v[c * FOURS + k] = x(AT(CLAMPED(c)), k);
    EACH_FOUR a[k] = gamma(gl_WorkGroupID.x * COLUMNS + COLUMN, k);
    EACH_FOUR b[k] = beta(gl_WorkGroupID.x * COLUMNS + COLUMN, k);
    float sum = 0, squares = 0;
    EACH_CHUNK {
        float part = 0;
        EACH_FOUR part += sum_of(v[c * FOURS + k]);
        sum += PIXEL(c) < p.pixels ? part : 0.0;
    }
    float mean = group_sum(vec2(sum, 0)).x * p.scale;
    EACH_CHUNK {
        float part = 0;
        EACH_FOUR {
            vec4 d = v[c * FOURS + k] - mean;
            part += sum_of(d * d);
        }
        squares += PIXEL(c) < p.pixels ? part : 0.0;
    }
    float rstd = inversesqrt(group_sum(vec2(squares, 0)).x * p.scale + p.eps);
    EACH_FOUR {
        a[k] *= SILU != 0 ? TO_EXP2 * rstd : rstd;
        if (SILU != 0) b[k] *= TO_EXP2;
    }
    EACH_CHUNK {
        if (PIXEL(c) >= p.pixels) break;
        EACH_FOUR {
            vec4 z = (v[c * FOURS + k] - mean) * a[k] + b[k];
            v[c * FOURS + k] = SILU != 0 ? silu_of(z) : z;
        }
        EACH_FOUR y(AT(PIXEL(c)), k, v[c * FOURS + k]);
    }
    if (gl_LocalInvocationID.x == 0) stats[gl_WorkGroupID.y * p.groups + gl_WorkGroupID.x] = vec2(mean, rstd);
}
