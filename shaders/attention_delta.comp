#version 450
// delta[image, head, query] = sum over d of do * o. One thread per query and head.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint images, tokens, heads, width; } p;
layout(set = 0, binding = 0) readonly buffer O { T0 o[]; };
layout(set = 0, binding = 1) readonly buffer DO { T1 dy[]; };
layout(set = 0, binding = 2) writeonly buffer Delta { float delta[]; };

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.images * p.tokens * p.heads) return;
    uint head = i % p.heads, token = i / p.heads % p.tokens, image = i / p.heads / p.tokens;
    float sum = 0;
    for (uint d = 0; d < p.width; d++) sum += float(o[i * p.width + d]) * float(dy[i * p.width + d]);
    delta[(image * p.heads + head) * p.tokens + token] = sum;
}
