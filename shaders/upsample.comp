#version 450
// Nearest neighbour: y[n, oy, ox, c] = x[n, nearest(oy), nearest(ox), c]. DOUBLE: a thread reads once and writes four pixels; else it takes
// one pixel of y. Workgroups: y rows (of x or y) of one image, z images.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "nearest.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1; // divides the channels
layout(constant_id = 1) const uint DOUBLE = 0;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint height, width, out_height, out_width, steps, steps_factor, steps_shift; float ratio_y, ratio_x; } p;
INPUT(0, x, T0)
OUTPUT(1, y, T1)

void main()
{
    uint i = gl_WorkGroupID.x * 128 + gl_LocalInvocationID.x, row = gl_WorkGroupID.y, n = gl_WorkGroupID.z;
    vec4 v[FOURS];
    if (DOUBLE != 0) {
        uint across = p.width * p.steps;
        if (i >= across) return;
        EACH_FOUR v[k] = x((n * p.height + row) * across + i, k);
        uint at = (n * p.out_height + 2 * row) * 2 * across + i + quotient(i, p.steps_factor, p.steps_shift) * p.steps;
        EACH_FOUR y(at, k, v[k]);
        EACH_FOUR y(at + p.steps, k, v[k]);
        EACH_FOUR y(at + 2 * across, k, v[k]);
        EACH_FOUR y(at + 2 * across + p.steps, k, v[k]);
    } else {
        if (i >= p.out_width * p.steps) return;
        uint ox = quotient(i, p.steps_factor, p.steps_shift), source = n * p.height + nearest(row, p.height, p.ratio_y);
        uint at = (source * p.width + nearest(ox, p.width, p.ratio_x)) * p.steps + i - ox * p.steps;
        EACH_FOUR v[k] = x(at, k);
        EACH_FOUR y((n * p.out_height + row) * p.out_width * p.steps + i, k, v[k]);
    }
}
