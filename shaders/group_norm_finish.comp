#version 450
// Second stage: one workgroup merges the parts of a group (Chan, Golub & LeVeque 1979). stats: [images, groups] of (mean, 1 / standard
// deviation). BACKWARD: parts are plain sums instead, and stats their means over the group.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint BACKWARD = 0;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint pixels, groups, width, width_factor, width_shift, block, blocks; float eps; } p;
layout(set = 0, binding = 0) readonly buffer Part { vec2 part[]; };
layout(set = 0, binding = 1) writeonly buffer Stats { vec2 stats[]; };

// Part i of the group, and how many pixels it is of.
vec2 part_at(uint i, out float n)
{
    uint group = gl_WorkGroupID.x, image = gl_WorkGroupID.y, b = quotient(i, p.width_factor, p.width_shift);
    n = float(min(p.block, p.pixels - b * p.block));
    return part[(image * p.blocks + b) * p.groups * p.width + group * p.width + i - b * p.width];
}

void main()
{
    uint count = p.blocks * p.width;
    float scale = 1.0 / (float(p.pixels) * float(p.width)), n;
    vec2 sum = vec2(0);
    for (uint i = gl_LocalInvocationID.x; i < count; i += THREADS) {
        vec2 v = part_at(i, n);
        sum += BACKWARD != 0 ? v : vec2(n * v.x, v.y);
    }
    vec2 result = group_sum(sum) * scale;
    if (BACKWARD == 0) {
        float between = 0;
        for (uint i = gl_LocalInvocationID.x; i < count; i += THREADS) {
            float d = part_at(i, n).x - result.x;
            between += n * d * d;
        }
        result.y = inversesqrt(result.y + group_sum(vec2(between, 0)).x * scale + p.eps);
    }
    if (gl_LocalInvocationID.x == 0) stats[gl_WorkGroupID.y * p.groups + gl_WorkGroupID.x] = result;
}
