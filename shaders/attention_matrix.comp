#version 450
// attention_half.comp on matrix units (VK_KHR_cooperative_matrix, fp16 in, fp32 sums). Workgroup (block of queries, head, image).
//
// Each of four subgroups owns FRAG queries. Scores of a block of BC keys go from fragments to the subgroup's strip of shared memory, because nothing
// says which thread holds which element; there the threads of a row take maximum, exponentials and sum in registers and write probabilities
// back as halfs for the second product. Only the subgroup itself touches its strip. Row factors reach the sums by a load with stride 0: the same
// column FRAG times. Heads are padded with zeros to whole fragments.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_KHR_shader_subgroup_basic : require
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 128; // 4 * WAVE
layout(constant_id = 1) const uint D = 40;        // width of a head, a multiple of 8
layout(constant_id = 2) const uint BC = 32;       // keys of a block
layout(constant_id = 3) const uint TAIL = 0;      // 1: the number of keys is no multiple of BC
layout(constant_id = 4) const uint FRAG = 16;     // what the device has: 8 or 16
layout(constant_id = 5) const uint WAVE = 32;     // threads of a subgroup, a multiple of FRAG

layout(push_constant) uniform Shape { uint tq, tk, heads; float scale; } p;
layout(set = 0, binding = 0) readonly buffer Q { uvec4 q8[]; };
layout(set = 0, binding = 1) readonly buffer K { uvec4 k8[]; };
layout(set = 0, binding = 2) readonly buffer V { uvec4 v8[]; };
layout(set = 0, binding = 3) writeonly buffer O { uvec4 o8[]; };
layout(set = 0, binding = 4) writeonly buffer LSE { float lse[]; }; // [images, heads, tq]

const uint DP = (D + FRAG - 1) / FRAG * FRAG;    // padded
const uint CHUNKS = D / 8, PADS = DP / 8 - CHUNKS, FD = DP / FRAG, FK = BC / FRAG, FC = FRAG / 8, BR = 4 * FRAG;
const uint PD = DP / 8 + 1, PB = BC / 8 + 1, PS = BC / 4 + 2;   // pitches in chunks of 16 bytes: K rows, rows of V transposed, fp32 scores
const uint AT_V = BC * PD, AT_S = AT_V + DP * PB, STRIP = FRAG * PS + FRAG / 4, TOTAL = AT_S + 4 * STRIP;
const uint PER_ROW = WAVE / FRAG, FOURS = BC / PER_ROW / 4;     // threads of a row, and the fours of keys of each
shared uvec4 tile[TOTAL > BR * PD ? TOTAL : BR * PD];           // K, V, strips; at the start Q

const uint NK = BC * CHUNKS, NV = BC / 2 * CHUNKS; // pieces of a block: a chunk of one key, of two keys
const uint LK = (NK + THREADS - 1) / THREADS, LV = (NV + THREADS - 1) / THREADS;
uvec4 rk[LK], rv[2 * LV];
uint key_k[LK], at_k[LK], to_k[LK]; // this thread's pieces: their key, where they are in memory, and in shared memory
uint key_v[LV], at_v[LV], to_v[LV];

#define SUMS coopmat<float, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseAccumulator>
#define LEFT coopmat<float16_t, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseA>
#define RIGHT coopmat<float16_t, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseB>
LEFT q[FD];
SUMS acc[FD];

uint line() { return p.heads * CHUNKS; }
uint piece(uint i, uint n) { return min(gl_LocalInvocationID.x + i * THREADS, n - 1); } // surplus threads repeat the last one

void blocks_begin()
{
    uint head = gl_WorkGroupID.z * p.tk * line() + gl_WorkGroupID.y * CHUNKS;
    [[unroll]] for (uint i = 0; i < LK; i++) {
        uint x = piece(i, NK);
        key_k[i] = x / CHUNKS;
        at_k[i] = head + x % CHUNKS + (TAIL != 0 ? 0 : key_k[i] * line());
        to_k[i] = x / CHUNKS * PD + x % CHUNKS;
    }
    [[unroll]] for (uint i = 0; i < LV; i++) { // neighbouring threads write neighbouring keys
        uint x = piece(i, NV);
        key_v[i] = x % (BC / 2) * 2;
        at_v[i] = head + x / (BC / 2) + (TAIL != 0 ? 0 : key_v[i] * line());
        to_v[i] = (AT_V + x / (BC / 2) * 8 * PB + key_v[i] / 8) * 4 + key_v[i] / 2 % 4;
    }
}

// Behind the last block the last one is read again: no branch around a load.
void fetch_k(uint j0)
{
    uint last = p.tk - 1, at = TAIL != 0 ? 0 : min(j0, p.tk - BC) * line();
    [[unroll]] for (uint i = 0; i < LK; i++) rk[i] = k8[at_k[i] + (TAIL != 0 ? min(j0 + key_k[i], last) * line() : at)];
}

void put_k()
{
    [[unroll]] for (uint i = 0; i < LK; i++) tile[to_k[i]] = rk[i];
}

void fetch_v(uint j0)
{
    uint last = p.tk - 1, at = j0 * line();
    [[unroll]] for (uint i = 0; i < LV; i++)
        [[unroll]] for (uint e = 0; e < 2; e++)
            rv[2 * i + e] = v8[at_v[i] + (TAIL != 0 ? min(j0 + key_v[i] + e, last) * line() : at + e * line())];
}

void put_v() // transposed: the keys of one place are neighbours
{
    [[unroll]] for (uint i = 0; i < LV; i++)
        [[unroll]] for (uint c = 0; c < 8; c++) {
            uint u = rv[2 * i][c / 2], v = rv[2 * i + 1][c / 2];
            tile[to_v[i] / 4 + c * PB][to_v[i] % 4] = c % 2 == 0 ? (u & 0xffffu) | v << 16 : u >> 16 | (v & 0xffff0000u);
        }
}

void wave_sync()
{
    subgroupMemoryBarrierShared();
    subgroupBarrier();
}

// Q through shared memory into fragments, then zeros where K and V are padded.
void begin_queries(uint i0)
{
    for (uint x = gl_LocalInvocationID.x; x < BR * (DP / 8); x += THREADS) {
        uint r = x / (DP / 8), c = x % (DP / 8);
        uint at = (gl_WorkGroupID.z * p.tq + min(i0 + r, p.tq - 1)) * line() + gl_WorkGroupID.y * CHUNKS + min(c, CHUNKS - 1);
        tile[r * PD + c] = c < CHUNKS ? q8[at] : uvec4(0);
    }
    barrier();
    [[unroll]] for (uint d = 0; d < FD; d++)
        coopMatLoad(q[d], tile, gl_SubgroupID * FRAG * PD + d * FC, PD, gl_CooperativeMatrixLayoutRowMajor);
    barrier();
    if (PADS > 0) {
        for (uint x = gl_LocalInvocationID.x; x < BC * PADS; x += THREADS) tile[x / max(PADS, 1) * PD + CHUNKS + x % max(PADS, 1)] = uvec4(0);
        for (uint x = gl_LocalInvocationID.x; x < PADS * 8 * PB; x += THREADS) tile[AT_V + D * PB + x] = uvec4(0);
    }
}

void scores(uint strip)
{
    [[unroll]] for (uint j = 0; j < FK; j++) {
        SUMS s = SUMS(0.0);
        [[unroll]] for (uint d = 0; d < FD; d++) {
            RIGHT k;
            coopMatLoad(k, tile, j * FRAG * PD + d * FC, PD, gl_CooperativeMatrixLayoutColumnMajor);
            s = coopMatMulAdd(q[d], k, s);
        }
        coopMatStore(s, tile, strip + j * FRAG / 4, PS, gl_CooperativeMatrixLayoutRowMajor);
    }
}

// Scores in the strip become probabilities relative to the largest score so far; behind them the factors for what was summed before.
void exponentials(uint strip, uint j0, float factor, inout float top, inout float sum)
{
    uint row = gl_SubgroupInvocationID / PER_ROW, part = gl_SubgroupInvocationID % PER_ROW;
    vec4 e[FOURS], m4 = vec4(-1e30), total = vec4(0.0);
    [[unroll]] for (uint c = 0; c < FOURS; c++) e[c] = uintBitsToFloat(tile[strip + row * PS + c * PER_ROW + part]);
    if (TAIL != 0 && j0 + BC > p.tk) // uniform: only the last block pays
        [[unroll]] for (uint c = 0; c < FOURS; c++)
            [[unroll]] for (uint x = 0; x < 4; x++)
                if (j0 + (c * PER_ROW + part) * 4 + x >= p.tk) e[c][x] = -1e30;
    [[unroll]] for (uint c = 0; c < FOURS; c++) m4 = max(m4, e[c]);
    float m = max(max(m4.x, m4.y), max(m4.z, m4.w)) * factor;
    [[unroll]] for (uint x = 1; x < PER_ROW; x *= 2) m = max(m, subgroupShuffleXor(m, x));
    m = max(m, top);
    float shrink = exp2(top - m);
    top = m;
    wave_sync(); // all have read the scores
    [[unroll]] for (uint c = 0; c < FOURS; c++) {
        uint x = c * PER_ROW + part; // four keys are half a chunk
        vec4 w = exp2(e[c] * factor - m);
        uvec2 h = uvec2(packHalf2x16(w.xy), packHalf2x16(w.zw));
        total += vec4(unpackHalf2x16(h.x), unpackHalf2x16(h.y)); // what the product will see
        tile[strip + row * PS + x / 2][x % 2 * 2] = h.x;
        tile[strip + row * PS + x / 2][x % 2 * 2 + 1] = h.y;
    }
    sum = sum * shrink + (total.x + total.y) + (total.z + total.w);
    if (part == 0) tile[strip + FRAG * PS + row / 4][row % 4] = floatBitsToUint(shrink);
}

void apply(uint strip)
{
    SUMS factor;
    coopMatLoad(factor, tile, strip + FRAG * PS, 0, gl_CooperativeMatrixLayoutColumnMajor);
    [[unroll]] for (uint d = 0; d < FD; d++) acc[d] = acc[d] * factor;
    [[unroll]] for (uint k = 0; k < FK; k++) {
        LEFT x;
        coopMatLoad(x, tile, strip + k * FC, PS, gl_CooperativeMatrixLayoutRowMajor);
        [[unroll]] for (uint d = 0; d < FD; d++) {
            RIGHT v;
            coopMatLoad(v, tile, AT_V + d * FRAG * PB + k * FC, PB, gl_CooperativeMatrixLayoutColumnMajor);
            acc[d] = coopMatMulAdd(x, v, acc[d]);
        }
    }
}

uvec4 halfs(vec4 u, vec4 v) // rounds to nearest; packHalf2x16 may not
{
    return uvec4(packFloat2x16(f16vec2(u.xy)), packFloat2x16(f16vec2(u.zw)), packFloat2x16(f16vec2(v.xy)), packFloat2x16(f16vec2(v.zw)));
}

void store(uint strip, uint query, float top, float sum)
{
    uint row = gl_SubgroupInvocationID / PER_ROW, part = gl_SubgroupInvocationID % PER_ROW;
    [[unroll]] for (uint x = 1; x < PER_ROW; x *= 2) sum += subgroupShuffleXor(sum, x);
    query += row;
    if (query < p.tq && part == 0)
        lse[(gl_WorkGroupID.z * p.heads + gl_WorkGroupID.y) * p.tq + query] = (top + log2(sum)) * 0.69314718;
    [[unroll]] for (uint d = 0; d < FD; d++) {
        coopMatStore(acc[d], tile, strip, PS, gl_CooperativeMatrixLayoutRowMajor);
        wave_sync();
        for (uint c = part; c < FC; c += PER_ROW) {
            vec4 u = uintBitsToFloat(tile[strip + row * PS + 2 * c]) / sum, v = uintBitsToFloat(tile[strip + row * PS + 2 * c + 1]) / sum;
            if (query < p.tq && d * FC + c < CHUNKS)
                o8[(gl_WorkGroupID.z * p.tq + query) * line() + gl_WorkGroupID.y * CHUNKS + d * FC + c] = halfs(u, v);
        }
        wave_sync();
    }
}

void main()
{
    uint i0 = gl_WorkGroupID.x * BR, strip = AT_S + gl_SubgroupID * STRIP;
    float top = -1e30, sum = 0.0, factor = p.scale * 1.44269504; // exp2 is one instruction
    begin_queries(i0);
    [[unroll]] for (uint d = 0; d < FD; d++) acc[d] = SUMS(0.0);
    blocks_begin();
    fetch_k(0);
    put_k();
    barrier();
    for (uint j0 = 0; j0 < p.tk; j0 += BC) {
        fetch_v(j0);
        scores(strip);
        wave_sync();
        exponentials(strip, j0, factor, top, sum);
        put_v();
        barrier(); // V is there, K read
        fetch_k(j0 + BC);
        apply(strip);
        put_k();
        barrier(); // K is there, V and strips read
    }
    store(strip, i0 + gl_SubgroupID * FRAG, top, sum);
}
