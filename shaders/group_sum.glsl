// Sums over a workgroup of THREADS, in a fixed order: the result does not depend on scheduling.
shared vec2 group_sum_part[THREADS];

vec2 group_sum(vec2 v)
{
    uint t = gl_LocalInvocationID.x;
    group_sum_part[t] = v;
    barrier();
    for (uint n = THREADS; n > 1; n = (n + 1) / 2) {
        uint upper = (n + 1) / 2;
        if (t + upper < n) group_sum_part[t] += group_sum_part[t + upper];
        barrier();
    }
    vec2 sum = group_sum_part[0];
    barrier();
    return sum;
}
