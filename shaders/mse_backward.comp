#version 450
// da = dloss * 2 * (a - b) / count; dloss: [1].
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint count; } p;
layout(set = 0, binding = 0) readonly buffer A { T0 a[]; };
layout(set = 0, binding = 1) readonly buffer B { T1 b[]; };
layout(set = 0, binding = 2) writeonly buffer DA { T2 da[]; };
layout(set = 0, binding = 3) readonly buffer DLoss { float dloss[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i < p.count) da[i] = T2(dloss[0] * 2.0 * (float(a[i]) - float(b[i])) / float(p.count));
}
