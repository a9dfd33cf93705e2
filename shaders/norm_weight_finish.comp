#version 450
// Second stage: dgamma and dbeta are the sums over parts [parts, channels], in a fixed order, added to what they hold (ACCUMULATE, a bit for each).
// A workgroup takes 16 channels, 8 threads share one.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(push_constant) uniform Shape { uint channels, parts, accumulate; } p;
layout(set = 0, binding = 0) readonly buffer Part { vec2 part[]; };
layout(set = 0, binding = 1) buffer Gamma { float dgamma[]; };
layout(set = 0, binding = 2) buffer Beta { float dbeta[]; };
shared vec2 sums[128];

void main()
{
    uint t = gl_LocalInvocationID.x, channel = gl_WorkGroupID.x * 16 + t % 16, at = min(channel, p.channels - 1);
    vec2 sum = vec2(0);
    for (uint i = t / 16; i < p.parts; i += 8) sum += part[i * p.channels + at];
    sums[t] = sum;
    barrier();
    if (t >= 16 || channel >= p.channels) return;
    for (uint i = 1; i < 8; i++) sum += sums[t + 16 * i];
    dgamma[channel] = (p.accumulate & 1u) != 0 ? dgamma[channel] + sum.x : sum.x;
    dbeta[channel] = (p.accumulate & 2u) != 0 ? dbeta[channel] + sum.y : sum.y;
}
