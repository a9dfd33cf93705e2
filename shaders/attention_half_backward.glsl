// The backward pass of attention for half floats, heads of a multiple of 40 places and no causal mask, for graphics cards. A workgroup holds a
// block of HELD tokens and walks over all others, PASSING at a time. In attention_half_keys.comp keys are held and queries pass, in
// attention_half_queries.comp it is the other way round.
//
// The 256 threads are two sides of 128. Side 0 multiplies q and k, side 1 do and v: 4 x 4 scores a thread. Side 0 makes probabilities of them, P =
// exp2(log2(e) scale s - lse), from which side 1 makes dS = P (dP - delta); the factor scale comes at the end. Then all threads multiply these with a
// passing tile, 4 tokens by 5 places a thread for each 40 places of the head. A thread has sums of one kind only, so that they fit
// into registers often enough for two waves on GCN, eight on RDNA.
//
// Shared memory holds pairs of tokens, [place][token / 2]: the same tile is read along places for scores and along tokens for gradients. Fours of words in
// a passing tile are swapped by bits 1 and 2 of the place, against bank conflicts. P and dS stay floats: mixed multiply-adds take them as they are,
// other processors save conversions. Wide heads pass in chunks of 40 places, the held tile with them.
layout(local_size_x = 256) in;
layout(constant_id = 0) const uint D = 40;   // width of a head
layout(constant_id = 1) const uint TAIL = 0; // 1: the number of keys is no multiple of PASSING

layout(push_constant) uniform Shape { uint tq, tk, heads, pitch; float scale; uint share; } p;
layout(set = 0, binding = 0) readonly buffer Q { uvec4 q8[]; };
layout(set = 0, binding = 1) readonly buffer K { uvec4 k8[]; };
layout(set = 0, binding = 2) readonly buffer V { uvec4 v8[]; };
layout(set = 0, binding = 3) readonly buffer DO { uvec4 dy8[]; };

const uint HELD = 64, PASSING = 32, PLACES = 40, CHUNKS = D / PLACES, SIDE = 128;
const uint CH = 16, CP = 8, TILE_H = PLACES * CH, TILE_P = PLACES * CP, TILE_W = HELD * CP; // fours of tokens in a row; sizes of tiles
shared uvec2 held[2 * TILE_H], passing[2 * TILE_P];                                         // by side

uvec4 rh[4], rp[4]; // on their way to shared memory: two tokens of either side
vec4 s[4];          // [held token][passing token]
float acc[CHUNKS][4][5];

uint line() { return p.heads * (D / 8); }
uint side() { return gl_LocalInvocationID.x / SIDE; }
uint tr() { return gl_LocalInvocationID.x % SIDE / 8; }
uint tc() { return gl_LocalInvocationID.x % 8; }

// A thread's piece of a tile: eight places of two tokens. Surplus threads repeat the last one.
uint piece(uint pairs) { return min(gl_LocalInvocationID.x, pairs * (PLACES / 8) - 1); }

// Where token `token` of `tokens` begins chunk `chunk`, the last one instead of those behind it.
uint token_at(uint token, uint tokens, uint chunk, uint eight)
{
    return (gl_WorkGroupID.z * tokens + min(token, tokens - 1)) * line() + gl_WorkGroupID.y * (D / 8) + chunk * (PLACES / 8) + eight;
}

#define FETCH(to, first, tokens, chunk, pairs, one, other)                                                  \
    [[unroll]] for (uint e_ = 0; e_ < 2; e_++) {                                                            \
        uint at_ = token_at((first) + piece(pairs) % (pairs) * 2 + e_, tokens, chunk, piece(pairs) / (pairs)); \
        to[e_] = one[at_];                                                                                  \
        to[2 + e_] = other[at_];                                                                            \
    }

uint pair(uint u, uint v, uint half_) { return half_ == 0 ? (u & 0xffffu) | v << 16 : u >> 16 | (v & 0xffff0000u); }

void put_held()
{
    uint pair_ = piece(HELD / 2) % (HELD / 2), at = piece(HELD / 2) / (HELD / 2) * 8 * CH + pair_ / 2;
    [[unroll]] for (uint c = 0; c < 8; c++) {
        held[at + c * CH][pair_ % 2] = pair(rh[0][c / 2], rh[1][c / 2], c % 2);
        held[TILE_H + at + c * CH][pair_ % 2] = pair(rh[2][c / 2], rh[3][c / 2], c % 2);
    }
}

void put_passing()
{
    uint pair_ = piece(PASSING / 2) % (PASSING / 2), at = piece(PASSING / 2) / (PASSING / 2) * 8 * CP + pair_ / 2;
    [[unroll]] for (uint c = 0; c < 8; c++) {
        passing[(at ^ (c & 6)) + c * CP][pair_ % 2] = pair(rp[0][c / 2], rp[1][c / 2], c % 2);
        passing[TILE_P + (at ^ (c & 6)) + c * CP][pair_ % 2] = pair(rp[2][c / 2], rp[3][c / 2], c % 2);
    }
}

vec4 floats(uvec2 u) { return vec4(unpackHalf2x16(u.x), unpackHalf2x16(u.y)); }

// Adds this chunk's part of the scores. Reads of STEP places ahead of their products: compilers leave less between them.
void add_scores()
{
    const uint STEP = 4;
    uint h = side() * TILE_H + tr(), g[4];
    [[unroll]] for (uint x = 0; x < 4; x++) g[x] = side() * TILE_P + (tc() ^ x * 2);
    [[unroll]] for (uint d = 0; d < PLACES; d += STEP) {
        uvec2 a[STEP], b[STEP];
        [[unroll]] for (uint u = 0; u < STEP; u++) {
            a[u] = held[h + (d + u) * CH];
            b[u] = passing[g[(d + u) / 2 % 4] + (d + u) * CP];
        }
        [[unroll]] for (uint u = 0; u < STEP; u++) {
            vec4 x = floats(a[u]), y = floats(b[u]);
            [[unroll]] for (uint i = 0; i < 4; i++) [[unroll]] for (uint j = 0; j < 4; j++) s[i][j] = fma(x[i], y[j], s[i][j]);
        }
    }
}

// acc[chunk] += weights times the tile, over `fours` fours of passing tokens from `first` on. w: where this thread's row of weights begins.
#define ADD_GRADIENTS(chunk, weights, w, tile, first, fours)                                                                    \
    {                                                                                                                           \
        uint z_[(fours) / 2];                                                                                                   \
        [[unroll]] for (uint x = 0; x < (fours) / 2; x++) z_[x] = (tile) * TILE_P + tc() * CP + (((first) + x * 2) ^ (tc() & 6)); \
        [[unroll]] for (uint f = 0; f < (fours); f++) {                                                                         \
            vec4 x[4];                                                                                                          \
            uvec2 y[5];                                                                                                         \
            [[unroll]] for (uint i = 0; i < 4; i++) x[i] = weights[(w) + i * CP + (first) + f];                                 \
            [[unroll]] for (uint e = 0; e < 5; e++) y[e] = passing[z_[f / 2] + f % 2 + e * 8 * CP];                             \
            [[unroll]] for (uint e = 0; e < 5; e++) {                                                                           \
                vec4 v = floats(y[e]);                                                                                          \
                [[unroll]] for (uint j = 0; j < 4; j++)                                                                         \
                    [[unroll]] for (uint i = 0; i < 4; i++) acc[chunk][i][e] = fma(x[i][j], v[j], acc[chunk][i][e]);            \
            }                                                                                                                   \
        }                                                                                                                       \
    }
