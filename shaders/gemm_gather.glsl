// Rows of B gathered from an image, for the weight gradient of a convolution: row k is what tap `tap` of output pixel k sees. From step to step
// pixels move on by carries: no division inside the loop. The includer defines LB (rows of a thread), BK, GATHER_K(i) (row i's k in the step),
// GATHER_PITCH (of source pixels, in the unit of the offsets), GATHER_TAIL (k may be outside) and `tap`, and keeps k_step, the step's first k.
int gather_y[LB], gather_x[LB];
uint gather_at[LB];     // offset of the source pixel
bool gather_inside[LB];

void gather_check(uint i)
{
    gather_inside[i] = gather_y[i] >= 0 && gather_x[i] >= 0 && gather_y[i] < int(p.source_height) && gather_x[i] < int(p.source_width);
    if (GATHER_TAIL) gather_inside[i] = gather_inside[i] && k_step + GATHER_K(i) < p.K;
}

void gather_begin()
{
    [[unroll]] for (uint i = 0; i < LB; i++) {
        uint k = k_step + GATHER_K(i), image = k / (p.width * p.height);
        gather_y[i] = int(k / p.width % p.height * p.stride + tap / p.kernel) - int(p.pad);
        gather_x[i] = int(k % p.width * p.stride + tap % p.kernel) - int(p.pad);
        gather_at[i] = uint((int(image * p.source_height) + gather_y[i]) * int(p.source_width) + gather_x[i]) * (GATHER_PITCH);
        gather_check(i);
    }
}

// To the pixels BK further on; k_step is there already.
void gather_advance()
{
    uint dy = BK / p.width % p.height, dx = BK % p.width, images = BK / (p.width * p.height);
    uint step = ((images * p.source_height + dy * p.stride) * p.source_width + dx * p.stride) * (GATHER_PITCH);
    int wide = int(p.width * p.stride), high = int(p.height * p.stride);
    int end_x = wide + int(tap % p.kernel) - int(p.pad), end_y = high + int(tap / p.kernel) - int(p.pad);
    uint next_row = uint(int(p.stride * p.source_width) - wide) * (GATHER_PITCH);
    uint next_image = uint(int(p.source_height) - high) * p.source_width * (GATHER_PITCH);
    [[unroll]] for (uint i = 0; i < LB; i++) {
        gather_x[i] += int(dx * p.stride);
        bool carry = gather_x[i] >= end_x;
        gather_x[i] -= carry ? wide : 0;
        gather_y[i] += int(dy * p.stride) + (carry ? int(p.stride) : 0);
        gather_at[i] += step + (carry ? next_row : 0u);
        carry = gather_y[i] >= end_y;
        gather_y[i] -= carry ? high : 0;
        gather_at[i] += carry ? next_image : 0u;
        gather_check(i);
    }
}
