// The Cayley transform (ops/cayley.c). Scratch memory: 64 floats (0: square of the norm of Q before it is limited, 1: gradient along Q), then
// matrices.
const uint SUMS = 64;

// What Q is scaled with.
float shrink(float limit, float square_norm)
{
    float norm = sqrt(square_norm);
    return limit > 0 && norm > limit ? limit / norm : 1.0;
}
