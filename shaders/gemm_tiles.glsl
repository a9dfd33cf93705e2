// Tiles of half-float A (BM x BK) and B (BN x BK) on their way from memory through registers to shared memory, in chunks of 8 elements
// (16 bytes). The includer defines THREADS, BM, BN, BK, A_MODE, B_MODE (gemm.comp says what they mean, and A 4 below), TAIL and
// PAIR_ROWS: of A [k][m] and B [k][n] rows k and k + 1 go to one thread, which can then store (k, k + 1) words.
//
// K is a multiple of BK; where both operands are [k][...], TAIL says that it may be anything. Pitches and tap_b are multiples of 8.
// Rows outside M and N are clamped: what comes of them is not stored.
// Loads are never under a branch or a select: the compiler would wait for each at once. Index arithmetic happens once per tap, not per
// step. A tap moves all rows by one uniform offset; which taps of a row are inside the image is a bit each. Zeros come about by an AND
// when the data goes to shared memory. What would lie behind the last step is read again instead.
//
// A 4 is A 3 for strides over 1. An input pixel meets only those taps that fall on its place modulo the stride, so the rows of C are taken
// in as many classes as there are places; a workgroup has rows of one class and walks through the taps of that class alone.
layout(set = 0, binding = 0) readonly buffer A8 { uvec4 a8[]; };
layout(set = 0, binding = 1) readonly buffer B8 { uvec4 b8[]; };

const bool A_KM = A_MODE == 1, GATHERED = A_MODE >= 2, BACKWARD = A_MODE >= 3, CLASSES = A_MODE == 4;
const bool B_KN = B_MODE >= 1, B_GATHER = B_MODE == 2;
const uint CHUNKS = BK / 8;            // of a tile row
const uint LA = BM * CHUNKS / THREADS; // loads per thread and step
const uint LB = BN * CHUNKS / THREADS;
uvec4 ra[LA], rb[LB];                  // the tile in flight
uint oa[LA], ob[LB];                   // where its rows are, in chunks
uint ka, kb;                           // how far along k, in chunks (uniform)
uint k_step;                           // the step's first k, where both operands are [k][...]
uint tap, tiles_left;                  // steps of this workgroup's share
uint start[LA], inside[LA], keep[LA];  // gathered rows: chunk of tap 0, a bit per tap, all ones or zero
uint rows;                             // of C, or of this class
uvec2 place, first_tap, taps_along;    // of this class: (y, x) modulo the stride, its first tap, how many

uint tile_row(uint i) { return gl_LocalInvocationID.x / CHUNKS + i * (THREADS / CHUNKS); } // of A [m][k], and of B [n][k]
uint tile_chunk() { return gl_LocalInvocationID.x % CHUNKS; }
// Of A [k][m] and B [k][n], `across` m or n. PAIR_ROWS: j counts pairs of loads.
uint tile_k(uint j, uint across)
{
    uint x = gl_LocalInvocationID.x + j * THREADS;
    return PAIR_ROWS ? (K_FIRST ? x % (BK / 2) : x / (across / 8)) * 2 : x / (across / 8);
}
uint tile_column(uint j, uint across)
{
    uint x = gl_LocalInvocationID.x + j * THREADS;
    return (PAIR_ROWS && K_FIRST ? x / (BK / 2) : x % (across / 8)) * 8;
}
uint load_k(uint i, uint across) { return PAIR_ROWS ? tile_k(i / 2, across) + i % 2 : tile_k(i, across); }
uint load_column(uint i, uint across) { return tile_column(PAIR_ROWS ? i / 2 : i, across); }

uvec2 grid_of_class() { return (uvec2(p.height, p.width) - place + p.stride - 1) / p.stride; }

// The first row of this workgroup; with classes, within its class.
uint tiles_first_row()
{
    uint at = gl_WorkGroupID.x;
    rows = p.M;
    for (uint c = 0; CLASSES && c < p.stride * p.stride; c++) {
        place = uvec2(c / p.stride, c % p.stride);
        uvec2 grid = grid_of_class();
        rows = p.M / (p.height * p.width) * grid.x * grid.y;
        uint tiles = (rows + BM - 1) / BM;
        if (at < tiles) break;
        at -= tiles;
    }
    first_tap = (place + p.pad) % max(p.stride, 1u);
    taps_along = CLASSES ? (p.kernel - first_tap + p.stride - 1) / p.stride : uvec2(1, p.taps);
    return at * BM;
}

// Image, y and x of a row.
uvec3 tiles_pixel(uint m)
{
    uvec2 grid = CLASSES ? grid_of_class() : uvec2(p.height, p.width);
    uvec3 at = uvec3(m / (grid.x * grid.y), m / grid.y % grid.x, m % grid.y);
    if (CLASSES) at.yz = at.yz * p.stride + place;
    return at;
}

// The row of C that row m is.
uint tiles_output(uint m)
{
    if (!CLASSES) return m;
    uvec3 at = tiles_pixel(m);
    return (at.x * p.height + at.y) * p.width + at.z;
}

uint tap_here()
{
    if (!CLASSES) return tap;
    uvec2 at = first_tap + uvec2(tap / taps_along.y, tap % taps_along.y) * p.stride;
    return at.x * p.kernel + at.y;
}

void tiles_tap() // once per tap
{
    uint t = tap_here(), ky = t / p.kernel, kx = t % p.kernel;
    uint step = BACKWARD ? 0u - (ky / p.stride * p.source_width + kx / p.stride) : ky * p.source_width + kx;
    step *= p.lda / 8;
    [[unroll]] for (uint i = 0; i < LA; i++) {
        bool is_inside = (inside[i] >> t & 1u) != 0;
        oa[i] = is_inside ? start[i] + step : tile_chunk();
        keep[i] = is_inside ? ~0u : 0u;
    }
}

// A pixel of the image that row m of A is gathered from, and which taps are inside.
void tiles_begin_pixel(uint i, uint m)
{
    uvec3 at = tiles_pixel(m);
    int stride = int(p.stride), y0 = BACKWARD ? int(at.y + p.pad) : int(at.y * p.stride) - int(p.pad);
    int x0 = BACKWARD ? int(at.z + p.pad) : int(at.z * p.stride) - int(p.pad);
    int row = BACKWARD ? y0 / stride : y0, column = BACKWARD ? x0 / stride : x0;
    start[i] = uint((int(at.x * p.source_height) + row) * int(p.source_width) + column) * (p.lda / 8) + tile_chunk();
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

#define GATHER_K(i) load_k(i, BN)
#define GATHER_PITCH p.ldb / 8
#define GATHER_TAIL (TAIL != 0)
#include "gemm_gather.glsl"

// z: of p.splits shares of the sum; or a tap, then a share
void tiles_begin(uint m0, uint n0, uint z)
{
    uint part = p.z_taps != 0 ? z % p.splits : z, per_tap = (p.K + BK - 1) / BK, taps = CLASSES ? taps_along.x * taps_along.y : p.taps;
    uint steps = per_tap * taps;
    uint share = (steps + p.splits - 1) / p.splits, first = min(part * share, steps);
    tiles_left = min(first + share, steps) - first;
    first = min(first, steps - 1);
    tap = p.z_taps != 0 ? z / p.splits : first / per_tap;
    k_step = first % per_tap * BK;
    ka = A_KM ? k_step * (p.lda / 8) : k_step / 8;
    kb = (p.z_taps != 0 ? 0 : tap_here() * (p.tap_b / 8)) + (B_KN ? k_step * (p.ldb / 8) : k_step / 8);
    [[unroll]] for (uint i = 0; i < LA; i++) {
        uint m = min(m0 + tile_row(i), rows - 1);
        if (A_KM)
            oa[i] = min(m0 + load_column(i, BM), p.M - 8) / 8 + (TAIL != 0 ? 0u : load_k(i, BM) * (p.lda / 8));
        else if (GATHERED)
            tiles_begin_pixel(i, m);
        else
            oa[i] = m * (p.lda / 8) + tile_chunk();
    }
    if (GATHERED) tiles_tap();
    [[unroll]] for (uint i = 0; i < LB; i++) {
        uint column = min(n0 + load_column(i, BN), p.N - 8) / 8;
        if (B_KN)
            ob[i] = column + (B_GATHER || TAIL != 0 ? 0u : load_k(i, BN) * (p.ldb / 8));
        else
            ob[i] = min(n0 + tile_row(i), p.N - 1) * (p.ldb / 8) + tile_chunk();
    }
    if (B_GATHER) gather_begin();
}

void tiles_fetch()
{
    [[unroll]] for (uint i = 0; i < LA; i++)
        ra[i] = a8[oa[i] + (A_KM && TAIL != 0 ? min(k_step + load_k(i, BM), p.K - 1) * (p.lda / 8) : ka)];
    [[unroll]] for (uint i = 0; i < LB; i++) {
        if (B_GATHER)
            rb[i] = b8[ob[i] + (gather_inside[i] ? gather_at[i] : 0u)];
        else if (TAIL != 0)
            rb[i] = b8[ob[i] + min(k_step + load_k(i, BN), p.K - 1) * (p.ldb / 8)];
        else
            rb[i] = b8[ob[i] + kb];
    }
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
            kb = tap_here() * (p.tap_b / 8);
            tiles_tap();
        }
    } else if (!last) {
        ka += A_KM ? BK * (p.lda / 8) : CHUNKS;
        kb += B_KN ? BK * (p.ldb / 8) : CHUNKS;
        k_step += BK;
        if (B_GATHER) gather_advance();
    }
    tiles_left--;
}

uvec4 tile_a(uint i) { return GATHERED ? ra[i] & keep[i] : ra[i]; }

// Zeros in B alone make the tail of k vanish: what A has there is clamped, not foreign.
uvec4 tile_b(uint i)
{
    if (B_GATHER) return rb[i] & (gather_inside[i] ? ~0u : 0u);
    return TAIL != 0 && k_step + load_k(i, BN) >= p.K ? uvec4(0) : rb[i];
}

// Elements c of rows k and k + 1, PAIR_ROWS: one v_perm_b32.
uint pair_up(uvec4 k, uvec4 next, uint c)
{
    uint u = k[c / 2], v = next[c / 2];
    return c % 2 == 0 ? (u & 0xffffu) | v << 16 : u >> 16 | (v & 0xffff0000u);
}
