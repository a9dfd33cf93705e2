// What every kernel starts from. T0, T1, ... are the element types of the bindings (float or float16_t, from the build), T0_4 ... their
// vectors of four. Half floats are only loaded and stored, never computed with.
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_control_flow_attributes : require

// Kernels over many elements: one thread per element (or per STEP), workgroups along x, then y, because one axis holds 65535 of them.
#define THREAD_INDEX ((gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x) * gl_WorkGroupSize.x + gl_LocalInvocationID.x)
#define GROUP_INDEX (gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x)

// n / d for n < 2^31, d as kernel_push_divisor gives it: three instructions instead of twenty (Granlund & Montgomery 1994).
uint quotient(uint n, uint factor, uint shift)
{
    uint high, low;
    umulExtended(n, factor, high, low);
    return high + n >> shift;
}

float sigmoid(float x) { return 1.0 / (1.0 + exp(-x)); }
