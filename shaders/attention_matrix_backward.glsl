// The backward pass of attention on matrix units (VK_KHR_cooperative_matrix, fp16 in, fp32 sums), as attention_half_backward.glsl divides it:
// one half of the eight subgroups multiplies q and k, the other do and v, each with FRAG held tokens in registers. Two subgroups, one of either side,
// share strips of shared memory where probabilities and dS lie as halfs. Logarithms and deltas come as fragments whose rows or columns are
// all the same (a load with stride 0), so it does not matter which thread holds which element. The product with scores wants passing
// tokens as they are in memory, that with gradients wants them transposed: there are both copies. Heads are padded with zeros.
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#define SUMS coopmat<float, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseAccumulator>
#define HALFS coopmat<float16_t, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseAccumulator>
#define LEFT coopmat<float16_t, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseA>
#define RIGHT coopmat<float16_t, gl_ScopeSubgroup, FRAG, FRAG, gl_MatrixUseB>
#define ROWS gl_CooperativeMatrixLayoutRowMajor
#define COLUMNS gl_CooperativeMatrixLayoutColumnMajor
// Queries are the columns of scores, so that what belongs to them is one number a thread: keys come from the left.
#if KEYS_HELD
#define HELD_FRAGMENT LEFT
#define PASSING_FRAGMENT RIGHT
#define HELD_LAYOUT ROWS
#define PASSING_LAYOUT COLUMNS
#define MULTIPLY(held, passing, sum) coopMatMulAdd(held, passing, sum)
#define STRIP_LAYOUT ROWS // [held][passing]
#define TURNS 2
#else
#define HELD_FRAGMENT RIGHT
#define PASSING_FRAGMENT LEFT
#define HELD_LAYOUT COLUMNS
#define PASSING_LAYOUT ROWS
#define MULTIPLY(held, passing, sum) coopMatMulAdd(passing, held, sum)
#define STRIP_LAYOUT COLUMNS
#define TURNS 1
#endif
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 256; // 8 * WAVE
layout(constant_id = 1) const uint D = 40;        // width of a head, a multiple of 8
layout(constant_id = 2) const uint PASSING = 32;  // tokens at a time
layout(constant_id = 3) const uint TAIL = 0;      // 1: the number of keys is no multiple of PASSING
layout(constant_id = 4) const uint FRAG = 16;     // what the device has: 8 or 16
layout(constant_id = 5) const uint WAVE = 32;     // threads of a subgroup, a multiple of FRAG

layout(push_constant) uniform Shape { uint tq, tk, heads, pitch; float scale; uint share; } p;
layout(set = 0, binding = 0) readonly buffer Q { uvec4 q8[]; };
layout(set = 0, binding = 1) readonly buffer K { uvec4 k8[]; };
layout(set = 0, binding = 2) readonly buffer V { uvec4 v8[]; };
layout(set = 0, binding = 3) readonly buffer DO { uvec4 dy8[]; };
layout(set = 0, binding = 4) readonly buffer Rows { float rows[]; }; // delta, then log2(e) lse: [2][images, heads, pitch]

const uint COUPLES = 4, HELD = COUPLES * FRAG;
const uint DP = (D + FRAG - 1) / FRAG * FRAG;    // padded
const uint CHUNKS = D / 8, PADS = DP / 8 - CHUNKS, FD = DP / FRAG, FP = PASSING / FRAG, FC = FRAG / 8;
const uint PD = DP / 8 + 1, PB = PASSING / 8 + 1, PO = FRAG / 4 + 1; // pitches in chunks of 16 bytes: plain and transposed tiles (strips too), results
const uint PLAIN = PASSING * PD, TURNED = DP * PB, STRIP = FRAG * PB, RESULT = FRAG * PO;
const uint AT_TURNED = 2 * PLAIN, AT_STRIPS = AT_TURNED + TURNS * TURNED, LOOP = AT_STRIPS + COUPLES * STRIP; // plain tiles by side
const uint PART = FD < 5 ? FD : 5, PART_PITCH = PART * FC + 1;
const uint BEGIN = 2 * HELD * PART_PITCH, END = 2 * COUPLES * RESULT, MOST = LOOP > BEGIN ? LOOP : BEGIN;
const uint PER_ROW = WAVE / FRAG; // threads that write out a row
shared uvec4 tile[MOST > END ? MOST : END];

const uint NP = PASSING / 2 * CHUNKS, LP = (NP + THREADS - 1) / THREADS; // pieces of a passing block: a chunk of two tokens; those of a thread
uvec4 rp[LP][4];                                                         // on their way to shared memory: two tokens of either side

uint block; // of held tokens
HELD_FRAGMENT held[FD];
SUMS s[FP];

uint line() { return p.heads * CHUNKS; }
uint side() { return gl_SubgroupID / COUPLES; }
uint couple() { return gl_SubgroupID % COUPLES; }
uint probabilities() { return AT_STRIPS + couple() * STRIP; }
uint slopes() { return couple() * STRIP; } // in the place of plain tiles: they are through when all have met
uint piece(uint i) { return min(gl_LocalInvocationID.x + i * THREADS, NP - 1); } // surplus threads repeat the last one

// Where token `token` of `tokens` begins, the last one instead of those behind it.
uint token_at(uint token, uint tokens) { return (gl_WorkGroupID.z * tokens + min(token, tokens - 1)) * line() + gl_WorkGroupID.y * CHUNKS; }

// Where all subgroups come by: some drivers make a barrier of the workgroup of it.
void wave_sync()
{
    subgroupMemoryBarrierShared();
    subgroupBarrier();
}

// Held tokens through shared memory into fragments, PART of them at a time. Loops around have as many passes as constants say: compilers unroll
// a loop over fragments only where they can unroll those inside it.
const uint NH = HELD * PART * FC, LH = (NH + THREADS - 1) / THREADS;
#define HOLD(one, other, tokens)                                                                                               \
    [[unroll]] for (uint d0 = 0; d0 < FD; d0 += PART) {                                                                        \
        [[unroll]] for (uint i = 0; i < LH; i++) {                                                                             \
            uint x = min(gl_LocalInvocationID.x + i * THREADS, NH - 1), r = x / (PART * FC), c = x % (PART * FC), chunk = d0 * FC + c; \
            uint at = token_at(block * HELD + r, tokens) + min(chunk, CHUNKS - 1);                                  \
            tile[r * PART_PITCH + c] = chunk < CHUNKS ? one[at] : uvec4(0);                                                    \
            tile[(HELD + r) * PART_PITCH + c] = chunk < CHUNKS ? other[at] : uvec4(0);                                         \
        }                                                                                                                      \
        barrier();                                                                                                             \
        uint own = (side() * HELD + couple() * FRAG) * PART_PITCH;                                                             \
        [[unroll]] for (uint d = 0; d < PART; d++)                                                                             \
            if (d0 + d < FD) coopMatLoad(held[d0 + d], tile, own + d * FC, PART_PITCH, HELD_LAYOUT);    \
        barrier();                                                                                                             \
    }

// Zeros where tiles are padded.
void pad()
{
    if (PADS == 0) return;
    for (uint x = gl_LocalInvocationID.x; x < 2 * PASSING * PADS; x += THREADS) tile[x / max(PADS, 1) * PD + CHUNKS + x % max(PADS, 1)] = uvec4(0);
    [[unroll]] for (uint t = 0; t < TURNS; t++)
        for (uint x = gl_LocalInvocationID.x; x < PADS * 8 * PB; x += THREADS) tile[AT_TURNED + t * TURNED + D * PB + x] = uvec4(0);
}

#define FETCH(first, tokens, one, other)                                                                                   \
    [[unroll]] for (uint i_ = 0; i_ < LP; i_++)                                                                            \
        [[unroll]] for (uint e_ = 0; e_ < 2; e_++) {                                                                       \
            uint at_ = token_at((first) + piece(i_) % (PASSING / 2) * 2 + e_, tokens) + piece(i_) / (PASSING / 2);         \
            rp[i_][e_] = one[at_];                                                                                         \
            rp[i_][2 + e_] = other[at_];                                                                                   \
        }

// Tokens behind the last one of `tokens` become zeros in transposed tiles.
void put(uint first, uint tokens)
{
    [[unroll]] for (uint i = 0; i < LP; i++) {
        uint pair = piece(i) % (PASSING / 2), chunk = piece(i) / (PASSING / 2);
        uint token = first + pair * 2, mask = (token < tokens ? 0xffffu : 0) | (token + 1 < tokens ? 0xffff0000u : 0);
        uint turned = AT_TURNED + chunk * 8 * PB + pair / 4;
        [[unroll]] for (uint t = 0; t < 2; t++) {
            tile[t * PLAIN + pair * 2 * PD + chunk] = rp[i][t * 2];
            tile[t * PLAIN + (pair * 2 + 1) * PD + chunk] = rp[i][t * 2 + 1];
            if (t < TURNS)
                [[unroll]] for (uint c = 0; c < 8; c++) {
                    uint u = rp[i][t * 2][c / 2], v = rp[i][t * 2 + 1][c / 2], w = c % 2 == 0 ? (u & 0xffffu) | v << 16 : u >> 16 | (v & 0xffff0000u);
                    tile[t * TURNED + turned + c * PB][pair % 4] = TAIL != 0 ? w & mask : w;
                }
        }
    }
}

// Products of held and passing tokens.
void multiply_tokens()
{
    [[unroll]] for (uint j = 0; j < FP; j++) {
        s[j] = SUMS(0.0);
        [[unroll]] for (uint d = 0; d < FD; d++) {
            PASSING_FRAGMENT x;
            coopMatLoad(x, tile, side() * PLAIN + j * FRAG * PD + d * FC, PD, PASSING_LAYOUT);
            s[j] = MULTIPLY(held[d], x, s[j]);
        }
    }
}

// P = exp2(factor s - l).
void put_probabilities(uint j, SUMS l, float factor)
{
    SUMS x = s[j] * factor - l;
    [[unroll]] for (uint e = 0; e < x.length(); e++) x[e] = exp2(x[e]);
    coopMatStore(HALFS(x), tile, probabilities() + j * FC, PB, STRIP_LAYOUT);
}

// dS without the factor scale: P (dP - delta).
void put_slopes(uint j, SUMS delta)
{
    HALFS probability;
    coopMatLoad(probability, tile, probabilities() + j * FC, PB, STRIP_LAYOUT);
    coopMatStore(HALFS(SUMS(probability) * (s[j] - delta)), tile, slopes() + j * FC, PB, STRIP_LAYOUT);
}

uvec4 halfs(vec4 u, vec4 v) // rounds to nearest; packHalf2x16 may not
{
    return uvec4(packFloat2x16(f16vec2(u.xy)), packFloat2x16(f16vec2(u.zw)), packFloat2x16(f16vec2(v.xy)), packFloat2x16(f16vec2(v.zw)));
}

// A fragment of this subgroup's sums to shared memory, from where each thread takes chunks of a row: WRITE is what it does with chunk `at` of
// token `token`, that is `low` and `high`.
#define STORE(sum, factor, WRITE)                                                                             \
    {                                                                                                         \
        uint own_ = gl_SubgroupID * RESULT, row_ = gl_SubgroupInvocationID / PER_ROW;                         \
        uint token = block * HELD + couple() * FRAG + row_;                                                   \
        coopMatStore(sum, tile, own_, PO, ROWS);                                                              \
        wave_sync();                                                                                          \
        [[unroll]] for (uint y_ = 0; y_ < FC; y_ += PER_ROW) {                                                \
            uint at = min(y_ + gl_SubgroupInvocationID % PER_ROW, FC - 1);                                    \
            uint x_ = own_ + row_ * PO + 2 * at;                                                              \
            vec4 low = uintBitsToFloat(tile[x_]) * (factor), high = uintBitsToFloat(tile[x_ + 1]) * (factor); \
            WRITE                                                                                             \
        }                                                                                                     \
        wave_sync();                                                                                          \
    }
