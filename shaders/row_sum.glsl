// A row of elements in the registers of LANES threads (a multiple of eight), each with CHUNKS steps of it; and sums over the row, in a fixed
// order: of eights, then of those.
#define EACH_CHUNK [[unroll]] for (uint c = 0; c < CHUNKS; c++)
bool inside(uint c, uint lane, uint steps) { return lane + c * LANES < steps; }
uint step_of(uint c, uint lane, uint steps) { return min(lane + c * LANES, steps - 1); } // loads are never under a branch

shared float row_sum_part[THREADS], row_sum_eight[THREADS / 8];

float row_sum(float v)
{
    uint t = gl_LocalInvocationID.x;
    barrier();
    row_sum_part[t] = v;
    barrier();
    float sum = 0;
    [[unroll]] for (uint i = 0; i < 8; i++) sum += row_sum_part[t - t % 8 + i];
    if (LANES == 8) return sum;
    if (t % 8 == 0) row_sum_eight[t / 8] = sum;
    barrier();
    sum = 0;
    [[unroll]] for (uint i = 0; i < LANES / 8; i++) sum += row_sum_eight[(t - t % LANES) / 8 + i];
    return sum;
}
