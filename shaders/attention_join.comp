#version 450
// dk and dv from what parts of the queries gave. One thread per four elements of either.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint fours, parts; } p;
layout(set = 0, binding = 0) readonly buffer Parts { vec4 x[]; }; // [2][parts][elements]: dk, dv
layout(set = 0, binding = 1) writeonly buffer DK { T0_4 dk[]; };
layout(set = 0, binding = 2) writeonly buffer DV { T0_4 dv[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.fours) return;
    vec4 k = x[i], v = x[p.parts * p.fours + i];
    for (uint n = 1; n < p.parts; n++) {
        k += x[n * p.fours + i];
        v += x[(p.parts + n) * p.fours + i];
    }
    dk[i] = T0_4(k);
    dv[i] = T0_4(v);
}
