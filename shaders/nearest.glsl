// The source of output index i, as PyTorch computes it: floor(i * (size / out_size)) in float. ratio = size / out_size.
uint nearest(uint i, uint size, float ratio) { return min(uint(floor(float(i) * ratio)), size - 1); }

// The first output index whose source is `at` or more.
uint first_copy(uint at, uint size, uint out_size, float ratio)
{
    if (at >= size) return out_size;
    uint i = at * out_size / size;
    while (i > 0 && nearest(i - 1, size, ratio) >= at) i--;
    while (i < out_size && nearest(i, size, ratio) < at) i++;
    return i;
}
