// Sums over the LANES threads that share a step of channels, of two vectors for every step: column_sums by all threads, then the totals of
// channel t of the workgroup's COLUMNS * STEP by thread t. Always in the same order.
shared vec4 column_part[2][LANES * COLUMNS * FOURS];

void column_sums(vec4 a[FOURS], vec4 b[FOURS])
{
    EACH_FOUR {
        column_part[0][gl_LocalInvocationID.x * FOURS + k] = a[k];
        column_part[1][gl_LocalInvocationID.x * FOURS + k] = b[k];
    }
    barrier();
}

vec2 column_total(uint t)
{
    vec2 sum = vec2(0);
    uint at = STEP == 1 ? t : t / 4, place = STEP == 1 ? 0 : t % 4;
    for (uint lane = 0; lane < LANES; lane++, at += COLUMNS * FOURS) sum += vec2(column_part[0][at][place], column_part[1][at][place]);
    return sum;
}
