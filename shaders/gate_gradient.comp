#version 450
// grad = 0 for elements whose rank, index / inner % ranks, is not open; see op_gate_gradient in ops.h.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint count, gate, inner, ranks; } p;
layout(set = 0, binding = 0) buffer Grad { float grad[]; };
layout(set = 0, binding = 1) readonly buffer Gates { vec4 gates[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.count) return;
    float rank = float(i / p.inner % p.ranks);
    if (rank < gates[p.gate].x || rank >= gates[p.gate].y) grad[i] = 0;
}
