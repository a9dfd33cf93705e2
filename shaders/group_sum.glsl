// Sums over a workgroup of THREADS (a power of two), in a fixed order: the result does not depend on scheduling.
shared vec2 group_sum_part[THREADS];

vec2 group_sum(vec2 v)
{
    uint t = gl_LocalInvocationID.x;
    group_sum_part[t] = v;
    barrier();
    for (uint half_way = THREADS / 2; half_way > 0; half_way /= 2) {
        if (t < half_way) group_sum_part[t] += group_sum_part[t + half_way];
        barrier();
    }
    vec2 sum = group_sum_part[0];
    barrier();
    return sum;
}
