#version 450
// Sums of g and g * xh over one chunk of pixels of one group; xh = (x - mean) * rstd, g = gamma * dy * act'(xh * gamma + beta).
// Laid out and launched as group_norm_stats.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint SILU = 0;
#include "group_sum.glsl"
layout(push_constant) uniform Shape { uint pixels, groups, width, chunks; } p;
layout(set = 0, binding = 0) readonly buffer X { T0 x[]; };
layout(set = 0, binding = 1) readonly buffer DY { T1 dy[]; };
layout(set = 0, binding = 2) readonly buffer Gamma { float gamma[]; };
layout(set = 0, binding = 3) readonly buffer Beta { float beta[]; };
layout(set = 0, binding = 4) readonly buffer Stats { vec2 stats[]; };
layout(set = 0, binding = 5) writeonly buffer Part { vec2 part[]; };

void main()
{
    uint chunk = gl_WorkGroupID.x, group = gl_WorkGroupID.y, n = gl_WorkGroupID.z;
    uint size = (p.pixels + p.chunks - 1) / p.chunks, first = min(chunk * size, p.pixels), last = min(first + size, p.pixels);
    uint channels = p.groups * p.width, count = (last - first) * p.width, base = (n * p.pixels + first) * channels;
    vec2 s = stats[n * p.groups + group], sum = vec2(0);
    for (uint i = gl_LocalInvocationID.x; i < count; i += THREADS) {
        uint c = group * p.width + i % p.width, at = base + i / p.width * channels + c;
        float xh = (float(x[at]) - s.x) * s.y, g = gamma[c] * float(dy[at]);
        if (SILU != 0) {
            float z = xh * gamma[c] + beta[c], e = sigmoid(z);
            g *= e * (1.0 + z * (1.0 - e));
        }
        sum += vec2(g, g * xh);
    }
    sum = group_sum(sum);
    if (gl_LocalInvocationID.x == 0) part[(n * p.groups + group) * p.chunks + chunk] = sum;
}
