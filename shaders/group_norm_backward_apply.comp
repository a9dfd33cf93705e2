#version 450
// dx = rstd * (g - mean(g) - xh * mean(g * xh)); see group_norm_backward_stats. means: [images * groups] of (mean(g), mean(g * xh)).
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint SILU = 0;
layout(push_constant) uniform Shape { uint images, pixels, groups, width; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) readonly buffer DY { T1 dy[]; };
layout(set = 0, binding = 2) writeonly buffer DX { T2 dx[]; };
layout(set = 0, binding = 3) readonly buffer Gamma { float gamma[]; };
layout(set = 0, binding = 4) readonly buffer Beta { float beta[]; };
layout(set = 0, binding = 5) readonly buffer Stats { vec2 stats[]; };
layout(set = 0, binding = 6) readonly buffer Means { vec2 means[]; };

void main()
{
    uint i = THREAD_INDEX, channels = p.groups * p.width;
    if (i >= p.images * p.pixels * channels) return;
    uint c = i % channels, group = i / (p.pixels * channels) * p.groups + c / p.width;
    vec2 s = stats[group], m = means[group];
    float xh = (float(x[i]) - s.x) * s.y, g = gamma[c] * float(dy[i]);
    if (SILU != 0) {
        float z = xh * gamma[c] + beta[c], e = sigmoid(z);
        g *= e * (1.0 + z * (1.0 - e));
    }
    dx[i] = T2(s.y * (g - m.x - xh * m.y));
}
