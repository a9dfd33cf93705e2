#version 450
// The reverse of concat: a[row], b[row] = x[row]. Workgroups with z = 0 write a (LAST: b), with z = 1 b.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint STEP = 1;
layout(constant_id = 1) const uint LAST = 0;
#include "elements.glsl"
layout(push_constant) uniform Shape { uint rows, a_width, a_factor, a_shift, b_width, b_factor, b_shift; } p; // as concat
INPUT(0, x, T0)
OUTPUT(1, a, T1)
OUTPUT(2, b, T2)

void main()
{
    uint i = THREAD_INDEX;
    vec4 v[FOURS];
    if (gl_WorkGroupID.z == 0 && LAST == 0) {
        if (i >= p.rows * p.a_width) return;
        uint at = i + quotient(i, p.a_factor, p.a_shift) * p.b_width;
        EACH_FOUR v[k] = x(at, k);
        EACH_FOUR a(i, k, v[k]);
    } else {
        if (i >= p.rows * p.b_width) return;
        uint at = i + (quotient(i, p.b_factor, p.b_shift) + 1) * p.a_width;
        EACH_FOUR v[k] = x(at, k);
        EACH_FOUR b(i, k, v[k]);
    }
}
