// Tiles of half-float A (BM x BK) and B (BN x BK) on their way from memory through registers to shared memory, in chunks of 8 elements
// (16 bytes). The includer defines THREADS, BM, BN, BK, A_MODE, B_MODE (gemm.comp says what they mean; A 1 and B 2 are not read here) and
// PAIR_ROWS: rows k and k + 1 of B [k][n] go to one thread, which can then store (k, k + 1) words.
//
// K, pitches and tap_b are multiples of BK and 8. Rows outside M and N are clamped: what comes of them is not stored.
// Loads are never under a branch or a select: the compiler would wait for each at once. Index arithmetic happens once per tap, not per step.
// A tap moves all rows by one uniform offset; which taps of a row are inside the image is a bit each. Zeros come about by an AND
// when the data goes to shared memory. What would lie behind the last step is read again instead.
layout(set = 0, binding = 0) readonly buffer A8 { uvec4 a8[]; };
layout(set = 0, binding = 1) readonly buffer B8 { uvec4 b8[]; };

const bool GATHERED = A_MODE >= 2, BACKWARD = A_MODE == 3, B_KN = B_MODE == 1;
const uint CHUNKS = BK / 8;            // of a tile row
const uint LA = BM * CHUNKS / THREADS; // loads per thread and step
const uint LB = BN * CHUNKS / THREADS;
uvec4 ra[LA], rb[LB];                  // the tile in flight
uint oa[LA], ob[LB];                   // where its rows are, in chunks
uint ka, kb;                           // how far along k, in chunks (uniform)
uint tap, tiles_left;                  // steps of this workgroup's share
uint start[LA], inside[LA], keep[LA];  // gathered rows: chunk of tap 0, a bit per tap, all ones or zero

uint tile_row(uint i) { return gl_LocalInvocationID.x / CHUNKS + i * (THREADS / CHUNKS); } // of A, and of B [n][k]
uint tile_chunk() { return gl_LocalInvocationID.x % CHUNKS; }
// Of B [k][n]. PAIR_ROWS: j counts pairs of loads.
uint tile_k(uint j)
{
    uint x = gl_LocalInvocationID.x + j * THREADS;
    return PAIR_ROWS ? (K_FIRST ? x % (BK / 2) : x / (BN / 8)) * 2 : x / (BN / 8);
}
uint tile_n(uint j)
{
    uint x = gl_LocalInvocationID.x + j * THREADS;
    return (PAIR_ROWS && K_FIRST ? x / (BK / 2) : x % (BN / 8)) * 8;
}

void tiles_tap() // once per tap
{
    uint ky = tap / p.kernel, kx = tap % p.kernel;
    uint step = BACKWARD ? 0u - (ky / p.stride * p.source_width + kx / p.stride) : ky * p.source_width + kx;
    step *= p.lda / 8;
    [[unroll]] for (uint i = 0; i < LA; i++) {
        bool is_inside = (inside[i] >> tap & 1u) != 0;
        oa[i] = is_inside ? start[i] + step : tile_chunk();
        keep[i] = is_inside ? ~0u : 0u;
    }
}

// A pixel of the image that row m of A is gathered from, and which taps are inside.
void tiles_begin_pixel(uint i, uint m)
{
    uint x = m % p.width, y = m / p.width % p.height, image = m / (p.width * p.height);
    int stride = int(p.stride), y0 = BACKWARD ? int(y + p.pad) : int(y * p.stride) - int(p.pad);
    int x0 = BACKWARD ? int(x + p.pad) : int(x * p.stride) - int(p.pad);
    int row = BACKWARD ? y0 / stride : y0, column = BACKWARD ? x0 / stride : x0;
    start[i] = uint((int(image * p.source_height) + row) * int(p.source_width) + column) * (p.lda / 8) + tile_chunk();
    inside[i] = 0;
    for (int t = 0; t < int(p.taps); t++) {
        int ky = t / int(p.kernel), kx = t % int(p.kernel), sy = BACKWARD ? y0 - ky : y0 + ky, sx = BACKWARD ? x0 - kx : x0 + kx;
        bool fits = sy >= 0 && sx >= 0;
        if (BACKWARD) {
            fits = fits && sy % stride == 0 && sx % stride == 0;
            sy /= stride;
            sx /= stride;
        }
        if (fits && sy < int(p.source_height) && sx < int(p.source_width)) inside[i] |= 1u << t;
    }
}

// part: of p.splits shares of the sum
void tiles_begin(uint m0, uint n0, uint part)
{
    uint per_tap = p.K / BK, steps = per_tap * p.taps, share = (steps + p.splits - 1) / p.splits, first = min(part * share, steps);
    tiles_left = min(first + share, steps) - first;
    first = min(first, steps - 1);
    tap = first / per_tap;
    ka = first % per_tap * CHUNKS;
    kb = tap * (p.tap_b / 8) + first % per_tap * (B_KN ? BK * (p.ldb / 8) : CHUNKS);
    [[unroll]] for (uint i = 0; i < LA; i++) {
        uint m = min(m0 + tile_row(i), p.M - 1);
        if (GATHERED)
            tiles_begin_pixel(i, m);
        else
            oa[i] = m * (p.lda / 8) + tile_chunk();
    }
    if (GATHERED) tiles_tap();
    [[unroll]] for (uint i = 0; i < LB; i++) {
        if (B_KN) {
            uint j = PAIR_ROWS ? i / 2 : i, k = tile_k(j) + (PAIR_ROWS ? i % 2 : 0u);
            ob[i] = k * (p.ldb / 8) + min(n0 + tile_n(j), p.N - 8) / 8;
        } else {
            ob[i] = min(n0 + tile_row(i), p.N - 1) * (p.ldb / 8) + tile_chunk();
        }
    }
}

void tiles_fetch()
{
    [[unroll]] for (uint i = 0; i < LA; i++) ra[i] = a8[oa[i] + ka];
    [[unroll]] for (uint i = 0; i < LB; i++) rb[i] = b8[ob[i] + kb];
}

void tiles_advance() // to the next step
{
    bool last = tiles_left == 1;
    if (GATHERED) {
        ka += CHUNKS;
        kb += B_KN ? BK * (p.ldb / 8) : CHUNKS;
        if (ka == p.K / 8) {
            ka = 0;
            tap += last ? 0 : 1;
            kb = tap * (p.tap_b / 8);
            tiles_tap();
        }
    } else {
        ka += last ? 0 : CHUNKS;
        kb += last ? 0 : (B_KN ? BK * (p.ldb / 8) : CHUNKS);
    }
    tiles_left--;
}

uvec4 tile_a(uint i) { return GATHERED ? ra[i] & keep[i] : ra[i]; }

// B [k][n], PAIR_ROWS: (b[k][n + c], b[k + 1][n + c]) of pair j, c = 0..7
uint tile_b_pair(uint j, uint c)
{
    uint u = rb[2 * j][c / 2], v = rb[2 * j + 1][c / 2];
    return c % 2 == 0 ? (u & 0xffffu) | v << 16 : u >> 16 | (v & 0xffff0000u); // one v_perm_b32
}
