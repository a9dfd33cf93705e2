#version 450
// What the backward pass needs to know of every query: delta = sum over d of do * o, and log2(e) times the log-sum-exp of its scores. One thread per
// query and head. Queries between tokens and pitch get an infinite log-sum-exp: their probabilities are zero.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint FOUR = 0; // 1: the width is a multiple of four
layout(push_constant) uniform Shape { uint images, tokens, heads, width, pitch; } p;
layout(set = 0, binding = 0) readonly buffer O { T0 o[]; };
layout(set = 0, binding = 0) readonly buffer O4 { T0_4 o4[]; };
layout(set = 0, binding = 1) readonly buffer DO { T1 dy[]; };
layout(set = 0, binding = 1) readonly buffer DO4 { T1_4 dy4[]; };
layout(set = 0, binding = 2) readonly buffer LSE { float lse[]; };       // [images, heads, tokens]
layout(set = 0, binding = 3) writeonly buffer Rows { float rows[]; };    // [2][images, heads, pitch]

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.images * p.pitch * p.heads) return;
    uint head = i % p.heads, token = i / p.heads % p.pitch, image = i / p.heads / p.pitch;
    uint from = min(token, p.tokens - 1), at = ((image * p.tokens + from) * p.heads + head) * p.width;
    float sum = 0;
    if (FOUR != 0)
        for (uint d = 0; d < p.width / 4; d++) sum += dot(vec4(o4[at / 4 + d]), vec4(dy4[at / 4 + d]));
    else
        for (uint d = 0; d < p.width; d++) sum += float(o[at + d]) * float(dy[at + d]);
    uint row = image * p.heads + head;
    rows[row * p.pitch + token] = sum;
    rows[(p.images * p.heads + row) * p.pitch + token] = token < p.tokens ? lse[row * p.tokens + from] * 1.44269504 : 1e30;
}
