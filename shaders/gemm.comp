#version 450
// C[m][n] = residual[m][n] + scale * sum_k A[m][k] * B[n][k] + bias[n] + shift[m / rows_per_image][n]: linear layers, 1x1 and 3x3
// convolutions as implicit GEMM, and the gradients of all of them, in one kernel.
//
// A: 0 rows        a[m * lda + k]
//    1 columns     a[k * lda + m]                              dY of a weight gradient
//    2 forward     a pixel gathered for output pixel m and tap  a 3x3 (or strided) convolution; k = channel, the tap loop is outside
//    3 backward    the same for the gradient of the input: m = input pixel, A = dY
// B: 0 nk          b[tap * tap_b + n * ldb + k]                weights [tap][out][in], forward
//    1 kn          b[tap * tap_b + k * ldb + n]                the same weights, backward-data
//    2 gather      b[pixel(k, tap) * ldb + n]                  x of a convolution's weight gradient; k = output pixel, one tap per z
//
// SLICES groups of threads share a tile, each with every SLICES'th k, and add up their results at the end: few results with long sums
// (adapters, their gradients) need many threads.
//
// Shape of the loop (README.md has the reasons): the next tile is fetched into registers while the current one is multiplied
// out of shared memory, one shared buffer, two barriers; no load is under a branch: addresses are clamped and what is outside becomes
// zero on its way to shared memory. A thread computes TM x TN results as blocks of 4 x 4 that lie a part of the tile apart, so that all
// shared reads are 16 bytes and neighbours.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64; // (BM / TM) * (BN / TN) * SLICES
layout(constant_id = 1) const uint BM = 32;
layout(constant_id = 2) const uint BN = 32;
layout(constant_id = 3) const uint BK = 16;
layout(constant_id = 4) const uint TM = 4;     // 4 or 8
layout(constant_id = 5) const uint TN = 4;
layout(constant_id = 6) const uint A_MODE = 0;
layout(constant_id = 7) const uint B_MODE = 0;
layout(constant_id = 8) const uint ACCESS = 0; // bits 0, 1, 2: A, B, C are read and written four elements at a time; the others: FLAGS
layout(constant_id = 9) const uint SLICES = 1;
layout(constant_id = 10) const uint EXACT = 0; // K is a multiple of BK
layout(constant_id = 11) const uint UNROLL = 1; // k's written out one after another

const uint FLAGS = ACCESS >> 3;
#define TC T2
#define TC_4 T2_4
#include "gemm_shape.glsl"
layout(set = 0, binding = 0) readonly buffer A1 { T0 a[]; };
layout(set = 0, binding = 0) readonly buffer A4 { T0_WORDS a4[]; };
layout(set = 0, binding = 1) readonly buffer B1 { T1 b[]; };
layout(set = 0, binding = 1) readonly buffer B4 { T1_WORDS b4[]; };

const bool A_ROWS = A_MODE != 1;  // a chunk of four runs along k, else along m
const bool B_ROWS = B_MODE == 0;
const bool A_GATHER = A_MODE >= 2;
const uint CHUNKS = BK / 4;
const uint LA = BM * CHUNKS / THREADS; // chunks per thread
const uint LB = BN * CHUNKS / THREADS;
const uint PA = BM + 4, PB = BN + 4;
const uint RT = BM / TM, CT = BN / TN, STAGE = 4 * RT * BN; // STAGE: results of a slice on their way out, a quarter or half of them
const bool EASY_A = (ACCESS & 1u) != 0, EASY_B = (ACCESS & 2u) != 0, EASY_C = (ACCESS & 4u) != 0;
const bool MASK_A = EXACT == 0 || A_GATHER, MASK_B = EXACT == 0 || B_MODE == 2; // rows outside M and N need none: nobody stores them

// sa[k][m], then sb[k][n]; at the end SLICES * STAGE results, for which it is large enough in all tiles in use.
shared float tile[BK * (PA + PB)];
const uint SB = BK * PA;

T0_WORDS ra[LA];           // the tile in flight, as it comes from memory: to convert is to wait
T1_WORDS rb[LB];
vec4 slow_a[LA], slow_b[LB]; // not in fours
uint tap, k_step, steps_left;  // of the tile in flight (uniform)
uint row_a[LA];            // where this thread's chunks of A begin (k = 0; per tap where gathered), and of B in tap 0
uint row_b[LB];
bool row_in[LA];           // gathered, inside the image
int pixel_y[LA], pixel_x[LA]; // gathered: the source position of tap (0, 0), before division by the stride (backward)
uint pixel_image[LA];
float acc[TM][TN];

// Chunk i of a thread. Rows: four neighbours read 16 elements of one row, then come the next rows, then the next 16 elements: shared memory
// takes that with few bank conflicts.
const uint ROWS = THREADS / 4; // at a time
uint across(uint i, uint rows) { return gl_LocalInvocationID.x / 4 % rows + i % max(rows / ROWS, 1u) * ROWS; }
uint along_k(uint i, uint rows)
{
    uint block = gl_LocalInvocationID.x / 4 / rows + i / max(rows / ROWS, 1u) * max(ROWS / rows, 1u);
    return block * 16 + gl_LocalInvocationID.x % 4 * 4;
}
uint column_k(uint i, uint tile) { return (gl_LocalInvocationID.x + i * THREADS) / (tile / 4); }
uint column_4(uint i, uint tile) { return (gl_LocalInvocationID.x + i * THREADS) % (tile / 4) * 4; }

vec4 from_words(uvec2 w) { return vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y)); }
vec4 from_words(uvec4 w) { return uintBitsToFloat(w); }

void load_a(uint i, uint at, uvec4 step)
{
    if (EASY_A)
        ra[i] = a4[at / 4];
    else
        slow_a[i] = vec4(a[at], a[at + step.y], a[at + step.z], a[at + step.w]);
}
void load_b(uint i, uint at, uvec4 step)
{
    if (EASY_B)
        rb[i] = b4[at / 4];
    else
        slow_b[i] = vec4(b[at], b[at + step.y], b[at + step.z], b[at + step.w]);
}

// Four neighbours from `at` on, of which `left` exist: their clamped first index and steps, and which of them count.
uvec4 steps_within(uint left) { return min(uvec4(0, 1, 2, 3), uvec4(max(left, 1u) - 1u)); }
bvec4 counts_within(uint left) { return lessThan(uvec4(0, 1, 2, 3), uvec4(left)); }

#define GATHER_K(i) column_k(i, BN)
#define GATHER_PITCH p.ldb
#define GATHER_TAIL (EXACT == 0)
#include "gemm_gather.glsl"

// The row of the source image that this tap of the pixel at (y, x) is in; false: outside.
bool source_row(uint image, int y, int x, out uint row)
{
    int ky = int(tap / p.kernel), kx = int(tap % p.kernel), stride = int(p.stride);
    int sy = A_MODE == 3 ? y - ky : y + ky, sx = A_MODE == 3 ? x - kx : x + kx;
    bool fits = true;
    if (A_MODE == 3) {
        fits = sy >= 0 && sx >= 0 && sy % stride == 0 && sx % stride == 0;
        sy = sy / stride;
        sx = sx / stride;
    }
    fits = fits && sy >= 0 && sx >= 0 && sy < int(p.source_height) && sx < int(p.source_width);
    row = fits ? (image * p.source_height + uint(sy)) * p.source_width + uint(sx) : 0u;
    return fits;
}

// Offset of a chunk at k = 0: of the last row or chunk where there is none.
uint row_begin(uint row, uint rows, uint pitch, uint k) { return min(row, rows - 1) * pitch + (EXACT != 0 ? k : 0u); }
uint column_begin(uint column, uint columns, uint pitch, uint k)
{
    return (column < columns ? column : 0u) + (EXACT != 0 ? k * pitch : 0u);
}

void begin_rows(uint m0, uint n0)
{
    [[unroll]] for (uint i = 0; i < LA; i++) {
        uint m = m0 + across(i, BM);
        if (A_GATHER) {
            m = min(m, p.M - 1);
            uint x = m % p.width, y = m / p.width % p.height;
            pixel_image[i] = m / (p.width * p.height);
            int stride = A_MODE == 2 ? int(p.stride) : 1, pad = A_MODE == 2 ? -int(p.pad) : int(p.pad);
            pixel_y[i] = int(y) * stride + pad;
            pixel_x[i] = int(x) * stride + pad;
        } else if (A_ROWS) {
            row_a[i] = row_begin(m, p.M, p.lda, along_k(i, BM));
            row_in[i] = true;
        } else {
            row_a[i] = column_begin(m0 + column_4(i, BM), p.M, p.lda, column_k(i, BM));
        }
    }
    [[unroll]] for (uint i = 0; i < LB; i++)
        row_b[i] = B_ROWS ? row_begin(n0 + across(i, BN), p.N, p.ldb, along_k(i, BN))
                          : column_begin(n0 + column_4(i, BN), p.N, B_MODE == 2 ? 0u : p.ldb, column_k(i, BN));
}

void begin_tap() // where A's rows are for this tap
{
    [[unroll]] for (uint i = 0; i < LA; i++) {
        uint row;
        row_in[i] = source_row(pixel_image[i], pixel_y[i], pixel_x[i], row);
        row_a[i] = row * p.lda + (EXACT != 0 ? along_k(i, BM) : 0u);
    }
}

// How many of a chunk's four elements exist.
uint left_of(uint at, uint end) { return at < end ? end - at : 0u; }
uint left_k(uint k) { return EXACT != 0 ? 4u : left_of(k, p.K); }

void fetch(uint m0, uint n0)
{
    [[unroll]] for (uint i = 0; i < LA; i++) {
        if (A_ROWS) {
            uint k = k_step + along_k(i, BM), left = left_k(k);
            load_a(i, row_a[i] + (EXACT != 0 ? k_step : left > 0 ? k : 0u), steps_within(left));
        } else {
            uint k = k_step + column_k(i, BM);
            load_a(i, row_a[i] + (EXACT != 0 ? k_step : min(k, p.K - 1)) * p.lda, steps_within(left_of(m0 + column_4(i, BM), p.M)));
        }
    }
    uint base = B_MODE == 2 ? 0u : tap * p.tap_b;
    [[unroll]] for (uint i = 0; i < LB; i++) {
        if (B_ROWS) {
            uint k = k_step + along_k(i, BN), left = left_k(k);
            load_b(i, base + row_b[i] + (EXACT != 0 ? k_step : left > 0 ? k : 0u), steps_within(left));
        } else {
            uint row = (EXACT != 0 ? k_step : min(k_step + column_k(i, BN), p.K - 1)) * p.ldb;
            if (B_MODE == 2) row = gather_inside[i] ? gather_at[i] : 0u;
            load_b(i, base + row_b[i] + row, steps_within(left_of(n0 + column_4(i, BN), p.N)));
        }
    }
}

void advance() // to the next step; behind the last one comes the last one
{
    if (--steps_left == 0) return;
    k_step += BK;
    if (B_MODE == 2) gather_advance();
    if (k_step < p.K) return;
    k_step = 0;
    tap++;
    if (A_GATHER) begin_tap();
}

void put_chunk(uint at, uint next, vec4 v)
{
    [[unroll]] for (uint j = 0; j < 4; j++) tile[at + j * next] = v[j];
}

void put()
{
    [[unroll]] for (uint i = 0; i < LA; i++) {
        vec4 v = EASY_A ? from_words(ra[i]) : slow_a[i];
        uint k = k_step + (A_ROWS ? along_k(i, BM) : column_k(i, BM)), left = A_ROWS ? left_k(k) : k < p.K ? 4u : 0u;
        if (MASK_A) v = mix(vec4(0), v, counts_within(A_GATHER && !row_in[i] ? 0u : left));
        if (A_ROWS)
            put_chunk(along_k(i, BM) * PA + across(i, BM), PA, v);
        else
            put_chunk(column_k(i, BM) * PA + column_4(i, BM), 1, v);
    }
    [[unroll]] for (uint i = 0; i < LB; i++) {
        vec4 v = EASY_B ? from_words(rb[i]) : slow_b[i];
        uint k = k_step + (B_ROWS ? along_k(i, BN) : column_k(i, BN)), left = B_ROWS ? left_k(k) : k < p.K ? 4u : 0u;
        if (MASK_B) v = mix(vec4(0), v, counts_within(B_MODE == 2 && !gather_inside[i] ? 0u : left));
        if (B_ROWS)
            put_chunk(SB + along_k(i, BN) * PB + across(i, BN), PB, v);
        else
            put_chunk(SB + column_k(i, BN) * PB + column_4(i, BN), 1, v);
    }
}

void multiply(uint tr, uint tc, uint slice)
{
    uint at_a = slice * PA + tr * 4, at_b = SB + slice * PB + tc * 4;
    for (uint step = 0; step < BK / SLICES; step += UNROLL) {
        [[unroll]] for (uint u = 0; u < UNROLL; u++) {
            uint k = (step + u) * SLICES;
            float x[TM], y[TN];
            [[unroll]] for (uint i = 0; i < TM; i++) x[i] = tile[at_a + k * PA + i / 4 * (RT * 4) + i % 4];
            [[unroll]] for (uint j = 0; j < TN; j++) y[j] = tile[at_b + k * PB + j / 4 * (CT * 4) + j % 4];
            [[unroll]] for (uint i = 0; i < TM; i++)
                [[unroll]] for (uint j = 0; j < TN; j++) acc[i][j] = fma(x[i], y[j], acc[i][j]);
        }
    }
}

// Four neighbours of row m from n on, or as many as there are.
void store(uint m, uint n, uint base, vec4 v)
{
    if (EASY_C) {
        store_four(m, n, base, v, terms_of_four(m, n, base));
        return;
    }
    uint at = base + m * p.ldc + n, s = m / max(p.rows_per_image, 1u) * p.N + n, count = min(4, p.N - n);
    v *= p.scale;
    for (uint j = 0; j < count; j++) {
        float f = v[j];
        if ((FLAGS & 1u) != 0) f += bias[n + j];
        if ((FLAGS & 2u) != 0) f += float(shift[s + j]);
        if ((FLAGS & 4u) != 0) f += float(residual[at + j]);
        if ((FLAGS & 8u) != 0) f += float(c[at + j]);
        c[at + j] = T2(f);
    }
}

uint row_of(uint i, uint tr) { return i / 4 * (RT * 4) + tr * 4 + i % 4; } // of a thread's results, in the tile

void store_own(uint m0, uint n0, uint tr, uint tc, uint base)
{
    [[unroll]] for (uint j = 0; j < TN; j += 4) {
        uint n = n0 + j * CT + tc * 4;
        vec4 terms[TM];
        [[unroll]] for (uint i = 0; i < TM; i++) terms[i] = terms_of_four(min(m0 + row_of(i, tr), p.M - 1), min(n, p.N - 4), base);
        [[unroll]] for (uint i = 0; i < TM; i++) {
            uint m = m0 + row_of(i, tr);
            if (m < p.M && n < p.N) store_four(m, n, base, vec4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]), terms[i]);
        }
    }
}

void main()
{
    uint m0 = gl_WorkGroupID.x * BM, n0 = gl_WorkGroupID.y * BN, z = gl_WorkGroupID.z;
    uint tc = gl_LocalInvocationID.x % CT, tr = gl_LocalInvocationID.x / CT % RT, slice = gl_LocalInvocationID.x / (CT * RT);
    [[unroll]] for (uint i = 0; i < TM; i++)
        [[unroll]] for (uint j = 0; j < TN; j++) acc[i][j] = 0.0;

    uint per_tap = (p.K + BK - 1) / BK, steps = per_tap * p.taps;
    uint share = (steps + p.splits - 1) / p.splits, first = min(z % p.splits * share, steps);
    steps_left = min(first + share, steps) - first;
    first = min(first, steps - 1);
    tap = p.z_taps != 0 ? z / p.splits : first / per_tap;
    k_step = first % per_tap * BK;

    begin_rows(m0, n0);
    if (A_GATHER) begin_tap();
    if (B_MODE == 2) gather_begin();
    fetch(m0, n0);
    put();
    barrier();
    while (steps_left > 0) {
        advance();
        fetch(m0, n0);
        multiply(tr, tc, slice);
        barrier();
        put();
        barrier();
    }

    if (SLICES == 1 && EASY_C) {
        store_own(m0, n0, tr, tc, z * p.c_stride);
        return;
    }
    // Through shared memory: slices add up, and neighbouring threads write neighbouring elements.
    [[unroll]] for (uint part = 0; part < TM / 4; part++) {
        if (part > 0) barrier();
        [[unroll]] for (uint i = 0; i < 4; i++)
            [[unroll]] for (uint j = 0; j < TN; j++)
                tile[slice * STAGE + (tr * 4 + i) * BN + j / 4 * (CT * 4) + tc * 4 + j % 4] = acc[part * 4 + i][j];
        barrier();
        for (uint i = gl_LocalInvocationID.x; i < RT * BN; i += THREADS) { // 4 * RT rows, in fours
            uint row = i / (BN / 4), col = i % (BN / 4) * 4, m = m0 + part * (RT * 4) + row, n = n0 + col;
            if (m >= p.M || n >= p.N) continue;
            vec4 sum = vec4(0);
            [[unroll]] for (uint k = 0; k < SLICES; k++) {
                uint at = k * STAGE + row * BN + col;
                sum += vec4(tile[at], tile[at + 1], tile[at + 2], tile[at + 3]);
            }
            store(m, n, z * p.c_stride, sum);
        }
    }
}
