#version 450
// norm^2 = squares + the sum over taps and ranks of own (2 scale h + scale^2 own g); factor = magnitude / (norm + eps). own and h are
// [taps, rank, count], of rows [count, rank]. A workgroup takes 16 norms, 8 threads share one.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint OF_ROWS = 0;
layout(push_constant) uniform Shape { uint count, rank, taps; float scale, eps; } p;
layout(set = 0, binding = 0) readonly buffer Squares { float squares[]; };
layout(set = 0, binding = 1) readonly buffer Own { float own[]; };
layout(set = 0, binding = 2) readonly buffer H { float h[]; };
layout(set = 0, binding = 3) readonly buffer G { float g[]; };
layout(set = 0, binding = 4) readonly buffer Magnitude { float magnitude[]; };
layout(set = 0, binding = 5) writeonly buffer Factor { float factor[]; };
layout(set = 0, binding = 6) writeonly buffer Norm { float norm[]; };
shared float sums[128];

void main()
{
    uint t = gl_LocalInvocationID.x, item = gl_WorkGroupID.x * 16 + t % 16, i = min(item, p.count - 1);
    uint step = OF_ROWS != 0 ? 1 : p.count, start = OF_ROWS != 0 ? i * p.rank : i;
    float sum = 0;
    for (uint row = t / 16; row < p.taps * p.rank; row += 8) {
        uint k = row % p.rank, tap = start + (row - k) * step;
        float u = 0;
        for (uint l = 0; l < p.rank; l++) u += own[tap + l * step] * g[l * p.rank + k];
        sum += own[tap + k * step] * (2 * p.scale * h[tap + k * step] + p.scale * p.scale * u);
    }
    sums[t] = sum;
    barrier();
    if (t >= 16 || item >= p.count) return;
    for (uint other = 1; other < 8; other++) sum += sums[t + 16 * other];
    float n = sqrt(max(squares[i] + sum, 0.0));
    norm[i] = n;
    factor[i] = magnitude[i] / (n + p.eps);
}
