#version 450
// The forward pass of attention_forward.comp for half floats, heads of a multiple of 8 places and no causal mask, on devices whose subgroups have
// shuffles. Workgroup (block of queries, head, image).
//
// Multiply-adds take halfs as they are where the processor can (v_fma_mix_f32); elsewhere every read of shared memory is followed by conversions, and WIDE
// saves those of the probabilities and of V: floats, V in two parts of a block where the head is wide.
//
// A thread owns R queries; of a block of BC keys BC / 8 scores each, then D / 8 places of the result: the running maximum and sum stay in
// registers, and only 8 neighbours exchange them. Shared memory holds pairs of halfs: sq[d / 2][query], K as [d / 2][key], sp[key / 2][query],
// V as [key / 2][d]. K and V lie in the same place: while scores are computed V is on its way to registers, while they are applied the next K.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#extension GL_KHR_shader_subgroup_shuffle : require
layout(local_size_x = 128) in;
layout(constant_id = 0) const uint D = 40;    // width of a head
layout(constant_id = 1) const uint R = 4;     // queries of a thread: 2 or 4
layout(constant_id = 2) const uint BC = 32;   // keys of a block: 16 or a multiple of 32
layout(constant_id = 3) const uint TAIL = 0;  // 1: the number of keys is no multiple of BC
layout(constant_id = 4) const uint WIDE = 0;  // 1: probabilities as floats, sp[key][query]

layout(push_constant) uniform Shape { uint tq, tk, heads; float scale; } p;
layout(set = 0, binding = 0) readonly buffer Q { uvec4 q8[]; };
layout(set = 0, binding = 1) readonly buffer K { uvec4 k8[]; };
layout(set = 0, binding = 2) readonly buffer V { uvec4 v8[]; };
layout(set = 0, binding = 3) writeonly buffer O1 { T0 o[]; };
layout(set = 0, binding = 4) writeonly buffer LSE { float lse[]; }; // [images, heads, tq]

const uint BR = 16 * R, C = BC / 8, E = D / 8, CHUNKS = D / 8; // CHUNKS of 8 places, 16 bytes, in a head
const uint PQ = BR + 4, PK = BC + 4, PV = D + 4;
const uint PARTS = WIDE != 0 && D > 80 ? 2 : 1, KV = BC / PARTS; // V comes in so many parts, of KV keys
const uint WORDS_K = D / 2 * PK, WORDS_V = (WIDE != 0 ? KV : BC / 2) * PV;
shared uint sq[D / 2 * PQ], skv[WORDS_K > WORDS_V ? WORDS_K : WORDS_V], sp[(WIDE != 0 ? BC : BC / 2) * PQ];

// Pieces of a block: a chunk of one key, and of V, unless WIDE, of two keys.
const uint TWO = WIDE != 0 ? 1 : 2, NK = BC * CHUNKS, NV = KV / TWO * CHUNKS;
const uint LK = (NK + 127) / 128, LV = (NV + 127) / 128;
uvec4 rk[LK], rv[PARTS * TWO * LV];
uint key_k[LK], at_k[LK], to_k[LK]; // this thread's pieces: their key, where they are in memory, and in shared memory
uint key_v[LV], at_v[LV], to_v[LV];
float s[R][C], acc[R][E], top[R], sum[R];

uint line() { return p.heads * CHUNKS; }
uint piece(uint i, uint n) { return min(gl_LocalInvocationID.x + i * 128, n - 1); } // surplus threads repeat the last one

void blocks_begin()
{
    uint head = gl_WorkGroupID.z * p.tk * line() + gl_WorkGroupID.y * CHUNKS;
    [[unroll]] for (uint i = 0; i < LK; i++) {
        uint x = piece(i, NK);
        key_k[i] = x / CHUNKS;
        at_k[i] = head + x % CHUNKS + (TAIL != 0 ? 0 : key_k[i] * line());
        to_k[i] = x % CHUNKS * 4 * PK + x / CHUNKS;
    }
    [[unroll]] for (uint i = 0; i < LV; i++) {
        uint x = piece(i, NV);
        key_v[i] = x / CHUNKS * TWO;
        at_v[i] = head + x % CHUNKS + (TAIL != 0 ? 0 : key_v[i] * line());
        to_v[i] = x / CHUNKS * PV + x % CHUNKS * 8;
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
    [[unroll]] for (uint i = 0; i < LK; i++)
        [[unroll]] for (uint c = 0; c < 4; c++) skv[to_k[i] + c * PK] = rk[i][c];
}

void fetch_v(uint j0)
{
    uint last = p.tk - 1, at = j0 * line();
    [[unroll]] for (uint n = 0; n < PARTS; n++)
        [[unroll]] for (uint i = 0; i < LV; i++)
            [[unroll]] for (uint e = 0; e < TWO; e++) {
                uint key = n * KV + e;
                rv[(n * LV + i) * TWO + e] = v8[at_v[i] + (TAIL != 0 ? min(j0 + key_v[i] + key, last) * line() : at + key * line())];
            }
}

void put_v(uint part)
{
    [[unroll]] for (uint i = 0; i < LV; i++)
        [[unroll]] for (uint c = 0; c < 8; c++) {
            uint at = (part * LV + i) * TWO, u = rv[at][c / 2], v = rv[at + TWO - 1][c / 2];
            if (WIDE != 0) skv[to_v[i] + c] = floatBitsToUint(unpackHalf2x16(u)[c % 2]);
            else skv[to_v[i] + c] = c % 2 == 0 ? (u & 0xffffu) | v << 16 : u >> 16 | (v & 0xffff0000u);
        }
}

// Index of a thread's query i, score j and place e in the block: in fours (then a rest of two and one) that are neighbours, and the threads' fours are.
uint row(uint tr, uint i) { return R == 2 ? tr * 2 + i : i / 4 * (BR / 2) + tr * 4 + i % 4; }
uint column(uint tc, uint j) { return C == 2 ? tc * 2 + j : j / 4 * 32 + tc * 4 + j % 4; }
uint place(uint tc, uint e)
{
    uint full = E / 4 * 4, two = E % 4 / 2 * 2;
    return e < full ? e / 4 * 32 + tc * 4 + e % 4 : e < full + two ? full * 8 + tc * 2 + e - full : (full + two) * 8 + tc;
}

float mac(vec2 u, vec2 v, float c) { return fma(u.y, v.y, fma(u.x, v.x, c)); }

// Reads of STEP pairs of places go ahead of the products of the pairs before.
const uint STEP = 2;
void scores(uint tr, uint tc)
{
    uint x[2][STEP][R], y[2][STEP][C];
    [[unroll]] for (uint i = 0; i < R; i++) [[unroll]] for (uint j = 0; j < C; j++) s[i][j] = 0.0;
    [[unroll]] for (uint d = 0; d <= D / 2; d += STEP) {
        uint now = d / STEP % 2;
        if (d < D / 2)
            [[unroll]] for (uint u = 0; u < STEP; u++) {
                [[unroll]] for (uint i = 0; i < R; i++) x[now][u][i] = sq[(d + u) * PQ + row(tr, i)];
                [[unroll]] for (uint j = 0; j < C; j++) y[now][u][j] = skv[(d + u) * PK + column(tc, j)];
            }
        if (d > 0)
            [[unroll]] for (uint u = 0; u < STEP; u++)
                [[unroll]] for (uint i = 0; i < R; i++)
                    [[unroll]] for (uint j = 0; j < C; j++) s[i][j] = mac(unpackHalf2x16(x[1 - now][u][i]), unpackHalf2x16(y[1 - now][u][j]), s[i][j]);
    }
}

// Scores become probabilities, relative to the largest score so far, in sp.
const uint G = R;
void exponentials(uint tr, uint tc, float factor)
{
    float most[R];
    [[unroll]] for (uint i = 0; i < R; i++) {
        most[i] = s[i][0];
        [[unroll]] for (uint j = 1; j < C; j++) most[i] = max(most[i], s[i][j]);
    }
    [[unroll]] for (uint g = 0; g < R; g += G)
        [[unroll]] for (uint x = 1; x < 8; x *= 2) { // several rows at once: an exchange takes as long as a read of shared memory
            float other[G];
            [[unroll]] for (uint i = 0; i < G; i++) other[i] = subgroupShuffleXor(most[g + i], x);
            [[unroll]] for (uint i = 0; i < G; i++) most[g + i] = max(most[g + i], other[i]);
        }
    [[unroll]] for (uint i = 0; i < R; i++) {
        float m = max(most[i] * factor, top[i]);
        float shrink = exp2(top[i] - m);
        top[i] = m;
        sum[i] *= shrink; // this thread's keys only, until the end
        [[unroll]] for (uint e = 0; e < E; e++) acc[i][e] *= shrink;
        [[unroll]] for (uint j = 0; j < C; j += 2) {
            vec2 w = vec2(exp2(s[i][j] * factor - m), exp2(s[i][j + 1] * factor - m));
            uint at = column(tc, j) / (WIDE != 0 ? 1 : 2) * PQ + row(tr, i);
            if (WIDE != 0) {
                sp[at] = floatBitsToUint(w.x);
                sp[at + PQ] = floatBitsToUint(w.y);
            } else { // the sum is of what the product will see: the conversion may round towards zero
                sp[at] = packHalf2x16(w);
                w = unpackHalf2x16(packHalf2x16(w));
            }
            sum[i] += w.x;
            sum[i] += w.y;
        }
    }
}

// Probabilities of keys 2 k and 2 k + 1 of the block.
vec2 weights(uint k, uint at)
{
    return WIDE != 0 ? vec2(uintBitsToFloat(sp[2 * k * PQ + at]), uintBitsToFloat(sp[(2 * k + 1) * PQ + at])) : unpackHalf2x16(sp[k * PQ + at]);
}

// The same keys' V at one place; k counts within the part.
vec2 values(uint k, uint at)
{
    return WIDE != 0 ? vec2(uintBitsToFloat(skv[2 * k * PV + at]), uintBitsToFloat(skv[(2 * k + 1) * PV + at])) : unpackHalf2x16(skv[k * PV + at]);
}

void apply(uint tr, uint tc, uint part)
{
    [[unroll]] for (uint k = 0; k < KV / 2; k++) {
        vec2 x[R], y[E];
        [[unroll]] for (uint i = 0; i < R; i++) x[i] = weights(part * KV / 2 + k, row(tr, i));
        [[unroll]] for (uint e = 0; e < E; e++) y[e] = values(k, place(tc, e));
        [[unroll]] for (uint i = 0; i < R; i++)
            [[unroll]] for (uint e = 0; e < E; e++) acc[i][e] = mac(x[i], y[e], acc[i][e]);
    }
}

void main()
{
    uint t = gl_LocalInvocationID.x, tc = t % 8, tr = t / 8, i0 = gl_WorkGroupID.x * BR;
    uint queries = gl_WorkGroupID.z * p.tq;
    const float LOG2E = 1.44269504;
    for (uint x = t; x < BR * CHUNKS; x += 128) {
        uvec4 w = q8[(queries + min(i0 + x / CHUNKS, p.tq - 1)) * line() + gl_WorkGroupID.y * CHUNKS + x % CHUNKS];
        [[unroll]] for (uint c = 0; c < 4; c++) sq[(x % CHUNKS * 4 + c) * PQ + x / CHUNKS] = w[c];
    }
    [[unroll]] for (uint i = 0; i < R; i++) {
        top[i] = -1e30;
        sum[i] = 0.0;
        [[unroll]] for (uint e = 0; e < E; e++) acc[i][e] = 0.0;
    }
    blocks_begin();
    fetch_k(0);
    put_k();
    barrier();
    for (uint j0 = 0; j0 < p.tk; j0 += BC) {
        fetch_v(j0);
        scores(tr, tc);
        if (TAIL != 0 && j0 + BC > p.tk) // uniform: only the last block pays
            [[unroll]] for (uint j = 0; j < C; j++)
                if (j0 + column(tc, j) >= p.tk) [[unroll]] for (uint i = 0; i < R; i++) s[i][j] = -1e30;
        exponentials(tr, tc, p.scale * LOG2E);
        [[unroll]] for (uint part = 0; part < PARTS; part++) {
            barrier(); // all have read K, or the part before
            put_v(part);
            barrier();
            if (part == 0) fetch_k(j0 + BC);
            apply(tr, tc, part);
        }
        barrier(); // all have read V
        put_k();
        barrier();
    }
    [[unroll]] for (uint i = 0; i < R; i++) {
        uint query = i0 + row(tr, i);
        [[unroll]] for (uint x = 1; x < 8; x *= 2) sum[i] += subgroupShuffleXor(sum[i], x);
        if (query < p.tq) {
            uint at = (queries + query) * line() * 8 + gl_WorkGroupID.y * D;
            [[unroll]] for (uint e = 0; e < E; e++) o[at + place(tc, e)] = T0(acc[i][e] / sum[i]);
            if (tc == 0) lse[(gl_WorkGroupID.z * p.heads + gl_WorkGroupID.y) * p.tq + query] = (top[i] + log2(sum[i])) / LOG2E;
        }
    }
}
