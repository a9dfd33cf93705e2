#version 450
// dx[n, y, x, c] = sum of dy over the pixels that were copied from (y, x); DOUBLE: those are four. Workgroups: y rows of dx, z images.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "nearest.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
layout(constant_id = 1) const uint DOUBLE = 0;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint height, width, out_height, out_width, steps, steps_factor, steps_shift; float ratio_y, ratio_x; } p;
INPUT(0, dy, T0)
OUTPUT(1, dx, T1)

void main()
{
    uint i = gl_WorkGroupID.x * 128 + gl_LocalInvocationID.x, row = gl_WorkGroupID.y, n = gl_WorkGroupID.z, across = p.width * p.steps;
    if (i >= across) return;
    uint column = quotient(i, p.steps_factor, p.steps_shift), pitch = p.out_width * p.steps, to = (n * p.height + row) * across + i;
    vec4 sum[FOURS];
    if (DOUBLE != 0) {
        uint at = (n * p.out_height + 2 * row) * pitch + i + column * p.steps;
        vec4 v[4 * FOURS];
        EACH_FOUR v[k] = dy(at, k);
        EACH_FOUR v[FOURS + k] = dy(at + p.steps, k);
        EACH_FOUR v[2 * FOURS + k] = dy(at + pitch, k);
        EACH_FOUR v[3 * FOURS + k] = dy(at + pitch + p.steps, k);
        EACH_FOUR sum[k] = v[k] + v[FOURS + k] + v[2 * FOURS + k] + v[3 * FOURS + k];
    } else {
        uint y0 = first_copy(row, p.height, p.out_height, p.ratio_y), y1 = first_copy(row + 1, p.height, p.out_height, p.ratio_y);
        uint x0 = first_copy(column, p.width, p.out_width, p.ratio_x), x1 = first_copy(column + 1, p.width, p.out_width, p.ratio_x);
        uint at = n * p.out_height * pitch + i - column * p.steps;
        EACH_FOUR sum[k] = vec4(0);
        for (uint oy = y0; oy < y1; oy++)
            for (uint ox = x0; ox < x1; ox++) EACH_FOUR sum[k] += dy(at + oy * pitch + ox * p.steps, k);
    }
    EACH_FOUR dx(to, k, sum[k]);
}
