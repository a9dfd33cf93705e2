#version 450
// With c = -df magnitude / (2 (norm + eps)^2 norm): down = (accumulate: down) + 2 c (scale h + scale^2 own g), dh = 2 scale c own; and
// dmagnitude = (accumulate: dmagnitude) + df / (norm + eps). own, h and their gradients are [taps, rank, count], of rows [count, rank].
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint OF_ROWS = 0;
layout(push_constant) uniform Shape { uint count, rank, taps; float scale, eps; uint accumulate, accumulate_magnitude; } p;
layout(set = 0, binding = 0) readonly buffer Own { float own[]; };
layout(set = 0, binding = 1) readonly buffer H { float h[]; };
layout(set = 0, binding = 2) readonly buffer G { float g[]; };
layout(set = 0, binding = 3) readonly buffer Magnitude { float magnitude[]; };
layout(set = 0, binding = 4) readonly buffer Norm { float norm[]; };
layout(set = 0, binding = 5) readonly buffer Df { float df[]; };
layout(set = 0, binding = 6) buffer Down { float down[]; };
layout(set = 0, binding = 7) writeonly buffer Dh { float dh[]; };
layout(set = 0, binding = 8) buffer Dm { float dm[]; };

void main()
{
    uint at = THREAD_INDEX;
    if (at >= p.taps * p.rank * p.count) return;
    uint i = OF_ROWS != 0 ? at / p.rank : at % p.count, k = OF_ROWS != 0 ? at % p.rank : at / p.count % p.rank;
    uint step = OF_ROWS != 0 ? 1 : p.count, tap = at - k * step;
    float n = norm[i], length = n + p.eps, c = n > 0 ? -df[i] * magnitude[i] / (length * length * n) : 0.0; // twice
    float u = 0;
    for (uint l = 0; l < p.rank; l++) u += own[tap + l * step] * g[l * p.rank + k];
    float grad = c * (p.scale * h[at] + p.scale * p.scale * u);
    down[at] = p.accumulate != 0 ? down[at] + grad : grad;
    dh[at] = p.scale * c * own[at];
    if (k == 0 && (OF_ROWS != 0 || at < p.count)) dm[i] = (p.accumulate_magnitude != 0 ? dm[i] : 0.0) + df[i] / length;
}
