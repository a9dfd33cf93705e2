#version 450
// dx = (SUM: dx so far) + dy, which is elements [first, first + count) of it
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint SUM = 0;
layout(push_constant) uniform Shape { uint width, first, count; } p;
layout(set = 0, binding = 0) readonly buffer Dy { float dy[]; };
layout(set = 0, binding = 1) readonly buffer Before { float before[]; };
layout(set = 0, binding = 2) writeonly buffer Dx { float dx[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.width) return;
    float f = SUM != 0 ? before[i] : 0.0;
    if (i >= p.first && i - p.first < p.count) f += dy[i - p.first];
    dx[i] = f;
}
