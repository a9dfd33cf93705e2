#version 450
// dd = (accumulate: dd) + slope (w + d), one slope per column, or per row modulo `outputs`.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint OF_ROWS = 0;
layout(push_constant) uniform Shape { uint rows, columns, outputs, accumulate; } p;
layout(set = 0, binding = 0) readonly buffer W { T0 w[]; };
layout(set = 0, binding = 1) readonly buffer D { float d[]; };
layout(set = 0, binding = 2) readonly buffer Slope { float slope[]; };
layout(set = 0, binding = 3) buffer Dd { float dd[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.rows * p.columns) return;
    float g = slope[OF_ROWS != 0 ? i / p.columns % p.outputs : i % p.columns] * (float(w[i]) + d[i]);
    dd[i] = p.accumulate != 0 ? dd[i] + g : g;
}
