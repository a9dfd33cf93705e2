#version 450
// Second stage: merges the chunks (Chan, Golub & LeVeque 1979). stats: [images * groups] of (mean, 1 / standard deviation).
// BACKWARD: part holds plain sums of (g, g * xh) instead, and stats their means over the group.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint BACKWARD = 0;
layout(push_constant) uniform Shape { uint count, pixels, width, chunks; float eps; } p;
layout(set = 0, binding = 0) readonly buffer Part { vec2 part[]; };
layout(set = 0, binding = 1) writeonly buffer Stats { vec2 stats[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.count) return;
    uint size = (p.pixels + p.chunks - 1) / p.chunks;
    float all = float(p.pixels * p.width);
    vec2 sum = vec2(0);
    if (BACKWARD != 0) {
        for (uint c = 0; c < p.chunks; c++) sum += part[i * p.chunks + c];
        stats[i] = sum / all;
        return;
    }
    float n = 0, mean = 0, squares = 0;
    for (uint c = 0; c < p.chunks; c++) {
        uint first = min(c * size, p.pixels);
        float m = float((min(first + size, p.pixels) - first) * p.width);
        if (m == 0) break;
        vec2 v = part[i * p.chunks + c];
        float d = v.x - mean;
        n += m;
        mean += d * m / n;
        squares += v.y + d * d * (n - m) * m / n;
    }
    stats[i] = vec2(mean, inversesqrt(squares / all + p.eps));
}
