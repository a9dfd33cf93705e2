#version 450
// norm[0] = sqrt(sum[0]) / loss scale
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 1) in;
layout(set = 0, binding = 0) readonly buffer Sum { float sum[]; };
layout(set = 0, binding = 1) readonly buffer Control { float control[]; }; // as in ops.h, 7: 1 / loss scale
layout(set = 0, binding = 2) writeonly buffer Norm { float norm[]; };

void main() { norm[0] = sqrt(sum[0]) * control[7]; }
