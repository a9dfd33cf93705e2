#version 450
// One AdamW step (Loshchilov & Hutter 2019, as torch.optim.AdamW) and grad = 0; see op_adamw in ops.h for control and norm.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint GATED = 0;
layout(push_constant) uniform Shape { uint fours; float max_norm; uint gate, inner, ranks; } p; // buffers end at a multiple of four elements
layout(set = 0, binding = 0) buffer Param { vec4 param[]; };
layout(set = 0, binding = 1) buffer Grad { vec4 grad[]; };
layout(set = 0, binding = 2) buffer M { vec4 m[]; };
layout(set = 0, binding = 3) buffer V { vec4 v[]; };
layout(set = 0, binding = 4) readonly buffer Control { float control[]; };
layout(set = 0, binding = 5) readonly buffer Norm { float norm[]; };
layout(set = 0, binding = 6) readonly buffer Gates { vec4 gates[]; }; // first open rank, the one behind the last, 1 - beta^t of both

void main()
{
    uint i = THREAD_INDEX;
    if (i >= p.fours) return;
    float n = norm[0], scale = control[7];
    if (p.max_norm > 0 && n > p.max_norm) scale *= p.max_norm / (n + 1e-6);
    bool finite = (floatBitsToUint(n) & 0x7f800000u) != 0x7f800000u; // isnan() may be optimized away
    if (finite) {
        float rate = control[0], beta1 = control[1], beta2 = control[2], eps = control[3], decay = 1.0 - rate * control[4];
        vec2 corrections = GATED != 0 ? gates[p.gate].zw : vec2(control[5], control[6]);
        float step_size = rate / corrections.x, root = 1.0 / sqrt(corrections.y);
        vec4 g = grad[i] * scale, a = beta1 * m[i] + (1.0 - beta1) * g, b = beta2 * v[i] + (1.0 - beta2) * g * g;
        vec4 moved = param[i] * decay - step_size * a / (sqrt(b) * root + eps);
        bvec4 open = bvec4(true);
        if (GATED != 0) {
            vec4 rank = vec4((4 * i + uvec4(0, 1, 2, 3)) / p.inner % p.ranks);
            open = bvec4(uvec4(greaterThanEqual(rank, gates[p.gate].xxxx)) & uvec4(lessThan(rank, gates[p.gate].yyyy)));
        }
        m[i] = mix(m[i], a, open);
        v[i] = mix(v[i], b, open);
        param[i] = mix(param[i], moved, open);
    }
    grad[i] = vec4(0);
}
