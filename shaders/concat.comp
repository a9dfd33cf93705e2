#version 450
// Two matrices side by side: y[row] = a[row], b[row]. Workgroups with z = 0 take a, with z = 1 b.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1; // divides both widths
#include "elements.glsl"
layout(push_constant) uniform Shape { uint rows, a_width, a_factor, a_shift, b_width, b_factor, b_shift; } p; // widths in steps
INPUT(0, a, T0)
INPUT(1, b, T1)
OUTPUT(2, y, T2)

void main()
{
    uint i = THREAD_INDEX;
    vec4 v[FOURS];
    if (gl_WorkGroupID.z == 0) {
        if (i >= p.rows * p.a_width) return;
        EACH_FOUR v[k] = a(i, k);
        uint at = i + quotient(i, p.a_factor, p.a_shift) * p.b_width;
        EACH_FOUR y(at, k, v[k]);
    } else {
        if (i >= p.rows * p.b_width) return;
        EACH_FOUR v[k] = b(i, k);
        uint at = i + (quotient(i, p.b_factor, p.b_shift) + 1) * p.a_width;
        EACH_FOUR y(at, k, v[k]);
    }
}
