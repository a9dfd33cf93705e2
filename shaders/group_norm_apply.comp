#version 450
// Last stage: y = act((x - mean) * rstd * gamma + beta), act: nothing or SiLU.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint SILU = 0;
layout(constant_id = 1) const uint FOUR = 0; // 1: the width of a group is a multiple of four
layout(push_constant) uniform Shape { uint images, pixels, groups, width; } p;
layout(set = 0, binding = 0) readonly buffer X1 { T0 x[]; };
layout(set = 0, binding = 0) readonly buffer X4 { T0_4 x4[]; };
layout(set = 0, binding = 1) writeonly buffer Y1 { T1 y[]; };
layout(set = 0, binding = 1) writeonly buffer Y4 { T1_4 y4[]; };
layout(set = 0, binding = 2) readonly buffer Gamma { float gamma[]; };
layout(set = 0, binding = 3) readonly buffer Beta { float beta[]; };
layout(set = 0, binding = 4) readonly buffer Stats { vec2 stats[]; };

void main()
{
    uint i = THREAD_INDEX * (FOUR != 0 ? 4 : 1), channels = p.groups * p.width;
    if (i >= p.images * p.pixels * channels) return;
    uint c = i % channels;
    vec2 s = stats[i / (p.pixels * channels) * p.groups + c / p.width];
    if (FOUR != 0) {
        vec4 z = (vec4(x4[i / 4]) - s.x) * s.y * vec4(gamma[c], gamma[c + 1], gamma[c + 2], gamma[c + 3]) +
                 vec4(beta[c], beta[c + 1], beta[c + 2], beta[c + 3]);
        if (SILU != 0) z /= 1.0 + exp(-z);
        y4[i / 4] = T1_4(z);
    } else {
        float z = (float(x[i]) - s.x) * s.y * gamma[c] + beta[c];
        if (SILU != 0) z *= sigmoid(z);
        y[i] = T1(z);
    }
}
