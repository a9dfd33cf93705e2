// How group norm's kernels for large images share them out. x: [images, pixels, steps] of STEP channels each. A workgroup takes COLUMNS steps
// of `block` pixels; LANES threads for each step walk through them, UNROLL pixels at once. Workgroup (steps / COLUMNS, blocks, images).
// WHOLE: pixels is a multiple of LANES * UNROLL, and block too, as it always is.
const uint COLUMNS = STEP == 8 ? 8 : 16, LANES = 128 / COLUMNS;
#define EACH_PIXEL [[unroll]] for (uint j = 0; j < UNROLL; j++)
#define INSIDE(pixel) (WHOLE != 0 || pixel + j * LANES < last)
#define CLAMPED(pixel) (WHOLE != 0 ? pixel + j * LANES : min(pixel + j * LANES, last - 1)) // no load under a branch: it would be waited for
#define GROUP_OF(c) quotient(c, p.width_factor, p.width_shift) // of `width` channels each
