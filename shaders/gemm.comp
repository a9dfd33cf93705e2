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
// Shape of the loop (README.md has the reasons): the next tile is fetched into registers while the current one is multiplied
// out of shared memory, one shared buffer, two barriers; no load is under a branch: addresses are clamped and what is outside becomes
// zero on its way to shared memory. A thread computes TM x TN results as blocks of 4 x 4 that lie a part of the tile apart, so that all
// shared reads are 16 bytes and neighbours.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64; // (BM / TM) * (BN / TN)
layout(constant_id = 1) const uint BM = 32;
layout(constant_id = 2) const uint BN = 32;
layout(constant_id = 3) const uint BK = 16;
layout(constant_id = 4) const uint TM = 4; // 4 or 8
layout(constant_id = 5) const uint TN = 4;
layout(constant_id = 6) const uint A_MODE = 0;
layout(constant_id = 7) const uint B_MODE = 0;
layout(constant_id = 8) const uint VECTORS = 0; // bit 0, 1, 2: A, B, C are read and written four elements at a time

#define TC T2
#define TC_4 T2_4
#include "gemm_shape.glsl"
layout(set = 0, binding = 0) readonly buffer A1 { T0 a[]; };
layout(set = 0, binding = 0) readonly buffer A4 { T0_4 a4[]; };
layout(set = 0, binding = 1) readonly buffer B1 { T1 b[]; };
layout(set = 0, binding = 1) readonly buffer B4 { T1_4 b4[]; };

const bool A_ROWS = A_MODE != 1;  // a chunk of four runs along k, else along m
const bool B_ROWS = B_MODE == 0;
const bool A_GATHER = A_MODE >= 2;
const uint CHUNKS = BK / 4;
const uint LA = BM * CHUNKS / THREADS; // chunks per thread
const uint LB = BN * CHUNKS / THREADS;
const uint PA = BM + 4, PB = BN + 4;
const uint RT = BM / TM, CT = BN / TN;

// sa[k][m], then sb[k][n]; at the end results on their way out: 4 * RT rows of BN, for which it is large enough in all tiles in use.
shared float tile[BK * (PA + PB)];
const uint SB = BK * PA;

vec4 ra[LA], rb[LB];       // the tile in flight
bvec4 keep_a[LA], keep_b[LB];
uint row_a[LA];            // where this thread's rows of A begin; per tap where gathered
bool row_in[LA];
int pixel_y[LA], pixel_x[LA]; // gathered: the source position of tap (0, 0), before division by the stride (backward)
uint pixel_image[LA];
float acc[TM][TN];

uint along_k(uint i) { return gl_LocalInvocationID.x % CHUNKS * 4; }
uint across(uint i) { return gl_LocalInvocationID.x / CHUNKS + i * (THREADS / CHUNKS); }
uint column_k(uint i, uint tile) { return (gl_LocalInvocationID.x + i * THREADS) / (tile / 4); }
uint column_4(uint i, uint tile) { return (gl_LocalInvocationID.x + i * THREADS) % (tile / 4) * 4; }

vec4 load_a(uint at, uvec4 step) { return (VECTORS & 1u) != 0 ? vec4(a4[at / 4]) : vec4(a[at], a[at + step.y], a[at + step.z], a[at + step.w]); }
vec4 load_b(uint at, uvec4 step) { return (VECTORS & 2u) != 0 ? vec4(b4[at / 4]) : vec4(b[at], b[at + step.y], b[at + step.z], b[at + step.w]); }

// Four neighbours from `at` on, of which `left` exist: their clamped first index and steps, and which of them count.
uvec4 steps_within(uint left) { return min(uvec4(0, 1, 2, 3), uvec4(max(left, 1u) - 1u)); }
bvec4 counts_within(uint left) { return lessThan(uvec4(0, 1, 2, 3), uvec4(left)); }

// The row of the source image that holds tap t of the pixel at (y, x); false: outside.
bool source_row(uint image, int y, int x, uint t, bool backward, out uint row)
{
    int ky = int(t / p.kernel), kx = int(t % p.kernel), stride = int(p.stride);
    int sy = backward ? y - ky : y + ky, sx = backward ? x - kx : x + kx;
    bool fits = true;
    if (backward) {
        fits = sy >= 0 && sx >= 0 && sy % stride == 0 && sx % stride == 0;
        sy = sy / stride;
        sx = sx / stride;
    }
    fits = fits && sy >= 0 && sx >= 0 && sy < int(p.source_height) && sx < int(p.source_width);
    row = fits ? (image * p.source_height + uint(sy)) * p.source_width + uint(sx) : 0u;
    return fits;
}

void begin_rows(uint m0)
{
    [[unroll]] for (uint i = 0; i < LA; i++) {
        uint m = m0 + across(i);
        row_in[i] = m < p.M;
        m = min(m, p.M - 1);
        if (A_GATHER) {
            uint x = m % p.width, y = m / p.width % p.height;
            pixel_image[i] = m / (p.width * p.height);
            int stride = A_MODE == 2 ? int(p.stride) : 1, pad = A_MODE == 2 ? -int(p.pad) : int(p.pad);
            pixel_y[i] = int(y) * stride + pad;
            pixel_x[i] = int(x) * stride + pad;
        } else {
            row_a[i] = m * p.lda;
        }
    }
}

void begin_tap(uint m0, uint tap) // where A's rows are for this tap
{
    [[unroll]] for (uint i = 0; i < LA; i++) {
        uint row;
        bool fits = source_row(pixel_image[i], pixel_y[i], pixel_x[i], tap, A_MODE == 3, row);
        row_in[i] = fits && m0 + across(i) < p.M;
        row_a[i] = row * p.lda;
    }
}

void fetch(uint m0, uint n0, uint tap, uint k0)
{
    [[unroll]] for (uint i = 0; i < LA; i++) {
        if (A_ROWS) {
            uint k = k0 + along_k(i), left = k < p.K ? p.K - k : 0u;
            ra[i] = load_a(row_a[i] + (left > 0 ? k : 0u), steps_within(left));
            keep_a[i] = counts_within(row_in[i] ? left : 0u);
        } else {
            uint k = k0 + column_k(i, BM), m = m0 + column_4(i, BM), left = m < p.M ? p.M - m : 0u;
            ra[i] = load_a(min(k, p.K - 1) * p.lda + (left > 0 ? m : 0u), steps_within(left));
            keep_a[i] = counts_within(k < p.K ? left : 0u);
        }
    }
    [[unroll]] for (uint i = 0; i < LB; i++) {
        if (B_ROWS) {
            uint k = k0 + along_k(i), n = n0 + across(i), left = k < p.K ? p.K - k : 0u;
            rb[i] = load_b(tap * p.tap_b + min(n, p.N - 1) * p.ldb + (left > 0 ? k : 0u), steps_within(left));
            keep_b[i] = counts_within(n < p.N ? left : 0u);
        } else {
            uint k = k0 + column_k(i, BN), n = n0 + column_4(i, BN), left = n < p.N ? p.N - n : 0u;
            uint row = min(k, p.K - 1);
            bool fits = k < p.K;
            if (B_MODE == 2) {
                uint x = row % p.width, y = row / p.width % p.height, image = row / (p.width * p.height);
                fits = source_row(image, int(y * p.stride) - int(p.pad), int(x * p.stride) - int(p.pad), tap, false, row) && fits;
            }
            uint base = B_MODE == 2 ? 0u : tap * p.tap_b;
            rb[i] = load_b(base + row * p.ldb + (left > 0 ? n : 0u), steps_within(left));
            keep_b[i] = counts_within(fits ? left : 0u);
        }
    }
}

void put()
{
    [[unroll]] for (uint i = 0; i < LA; i++) {
        vec4 v = mix(vec4(0), ra[i], keep_a[i]);
        uint at = A_ROWS ? along_k(i) * PA + across(i) : column_k(i, BM) * PA + column_4(i, BM);
        uint next = A_ROWS ? PA : 1u;
        tile[at] = v.x;
        tile[at + next] = v.y;
        tile[at + 2 * next] = v.z;
        tile[at + 3 * next] = v.w;
    }
    [[unroll]] for (uint i = 0; i < LB; i++) {
        vec4 v = mix(vec4(0), rb[i], keep_b[i]);
        uint at = B_ROWS ? along_k(i) * PB + across(i) : column_k(i, BN) * PB + column_4(i, BN);
        uint next = B_ROWS ? PB : 1u;
        tile[SB + at] = v.x;
        tile[SB + at + next] = v.y;
        tile[SB + at + 2 * next] = v.z;
        tile[SB + at + 3 * next] = v.w;
    }
}

void multiply(uint tr, uint tc)
{
    for (uint k = 0; k < BK; k++) {
        float x[TM], y[TN];
        [[unroll]] for (uint i = 0; i < TM; i++) x[i] = tile[k * PA + i / 4 * (RT * 4) + tr * 4 + i % 4];
        [[unroll]] for (uint j = 0; j < TN; j++) y[j] = tile[SB + k * PB + j / 4 * (CT * 4) + tc * 4 + j % 4];
        [[unroll]] for (uint i = 0; i < TM; i++)
            [[unroll]] for (uint j = 0; j < TN; j++) acc[i][j] = fma(x[i], y[j], acc[i][j]);
    }
}

// Four neighbours of row m from n on, or as many as there are.
void store(uint m, uint n, uint base, vec4 v)
{
    if ((VECTORS & 4u) != 0) {
        store_four(m, n, base, v);
        return;
    }
    uint at = base + m * p.ldc + n, s = m / max(p.rows_per_image, 1u) * p.N + n, count = min(4, p.N - n);
    v *= p.scale;
    for (uint j = 0; j < count; j++) {
        float f = v[j];
        if ((p.flags & 1u) != 0) f += bias[n + j];
        if ((p.flags & 2u) != 0) f += float(shift[s + j]);
        if ((p.flags & 4u) != 0) f += float(residual[at + j]);
        if ((p.flags & 8u) != 0) f += float(c[at + j]);
        c[at + j] = T2(f);
    }
}

void main()
{
    uint m0 = gl_WorkGroupID.x * BM, n0 = gl_WorkGroupID.y * BN, z = gl_WorkGroupID.z;
    uint tc = gl_LocalInvocationID.x % CT, tr = gl_LocalInvocationID.x / CT;
    [[unroll]] for (uint i = 0; i < TM; i++)
        [[unroll]] for (uint j = 0; j < TN; j++) acc[i][j] = 0.0;

    uint per_tap = (p.K + BK - 1) / BK, steps = per_tap * p.taps;
    uint share = (steps + p.splits - 1) / p.splits, first = min(z % p.splits * share, steps), last = min(first + share, steps);
    uint tap = p.z_taps != 0 ? z / p.splits : first / per_tap;
    uint k0 = first % per_tap * BK;

    begin_rows(m0);
    for (uint s = first;; s++) {
        if (s < last) { // fetch step s while step s - 1 is multiplied
            bool new_tap = s == first;
            if (s > first) {
                k0 += BK;
                if (k0 >= p.K) {
                    k0 = 0;
                    tap++;
                    new_tap = true;
                }
            }
            if (A_GATHER && new_tap) begin_tap(m0, tap);
            fetch(m0, n0, tap, k0);
        }
        if (s > first) multiply(tr, tc);
        barrier();
        if (s >= last) break;
        put();
        barrier();
    }

    // Through shared memory, so that neighbouring threads write neighbouring elements.
    [[unroll]] for (uint part = 0; part < TM / 4; part++) {
        if (part > 0) barrier();
        [[unroll]] for (uint i = 0; i < 4; i++)
            [[unroll]] for (uint j = 0; j < TN; j++)
                tile[(tr * 4 + i) * BN + j / 4 * (CT * 4) + tc * 4 + j % 4] = acc[part * 4 + i][j];
        barrier();
        for (uint i = gl_LocalInvocationID.x; i < RT * BN; i += THREADS) { // 4 * RT rows, in fours
            uint row = i / (BN / 4), col = i % (BN / 4) * 4, m = m0 + part * (RT * 4) + row, n = n0 + col, at = row * BN + col;
            if (m < p.M && n < p.N) store(m, n, z * p.c_stride, vec4(tile[at], tile[at + 1], tile[at + 2], tile[at + 3]));
        }
    }
}
