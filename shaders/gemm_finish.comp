#version 450
// The end of a product whose sum was split: C = residual + scale * (sum of the parts) + bias + shift, four elements a thread. Always in the same
// order. N is a multiple of four.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint FLAGS = 0;
#define TC T0
#define TC_4 T0_4
#include "gemm_shape.glsl"
layout(set = 0, binding = 0) readonly buffer Parts { vec4 part[]; };

void main()
{
    uint i = THREAD_INDEX, four = p.c_stride / 4;
    if (i >= four) return;
    vec4 sum = vec4(0);
    for (uint s = 0; s < p.splits; s++) sum += part[s * four + i];
    store_four(i * 4 / p.N, i * 4 % p.N, 0, sum, terms_of_four(i * 4 / p.N, i * 4 % p.N, 0));
}
