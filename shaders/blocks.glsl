// Columns in blocks (ops/blocks.c).

// First element of block `block` of a pixel: blocks lie behind the pixels of an image, or before them.
uint block_at(uint first, uint blocks, uint pixels, uint k, uint image, uint pixel, uint block)
{
    return (first != 0 ? (image * blocks + block) * pixels + pixel : (image * pixels + pixel) * blocks + block) * k;
}

// Column that stands at `at` when blocks are taken: viewed as [c, 2, stride] it becomes [c, stride, 2].
uint butterfly(uint at, uint stride)
{
    if (stride == 0) return at;
    uint inside = at % (2 * stride);
    return at - inside + inside % 2 * stride + inside / 2;
}

// Where column `column` of the tensor stands.
uint butterfly_inverse(uint column, uint stride)
{
    if (stride == 0) return column;
    uint inside = column % (2 * stride);
    return column - inside + inside % stride * 2 + inside / stride;
}
