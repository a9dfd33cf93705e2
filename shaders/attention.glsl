// What the attention kernels share. 64 threads as 8 x 8 (tr, tc); heads lie side by side in a row: x[image][token][head * D + d].
// Tiles in shared memory are [d][token], with a pitch of four more than the tokens: threads read four neighbouring tokens at once, or
// one token at eight places d without bank conflicts.
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint D = 40;      // width of a head
layout(constant_id = 1) const uint DC = 40;     // of which so many are in shared memory at a time, a multiple of 8
layout(constant_id = 2) const uint CHUNKS = 1;  // DC * CHUNKS >= D
layout(constant_id = 3) const uint BR = 32;     // queries per block, a multiple of 8
layout(constant_id = 4) const uint BC = 32;     // keys per block
layout(constant_id = 5) const uint CAUSAL = 0;
layout(constant_id = 6) const uint FOUR = 0;    // 1: D is a multiple of four

layout(push_constant) uniform Shape { uint tq, tk, heads; float scale; } p;

const uint R = BR / 8, C = BC / 8;   // queries and keys of a thread
const uint E = DC / 8;               // places d of a thread in one chunk
const uint PR = BR + 4, PC = BC + 4; // pitches

#define PITCH (p.heads * D)
#define QUERY_BASE ((gl_WorkGroupID.z * p.tq * p.heads + gl_WorkGroupID.y) * D)
#define KEY_BASE ((gl_WorkGroupID.z * p.tk * p.heads + gl_WorkGroupID.y) * D)

// Loads chunk `chunk` of ROWS tokens from `first` on into the shared array, zeros outside. one, four: the buffer as scalars and vectors.
#define LOAD_TILE(tile, pitch, one, four, ROWS, base, first, tokens, chunk)                                                 \
    for (uint i = gl_LocalInvocationID.x; i < ROWS * DC / 4; i += 64) {                                                     \
        uint row = i / (DC / 4), col = i % (DC / 4) * 4, d = (chunk) * DC + col;                                            \
        uint at = (base) + min((first) + row, (tokens) - 1) * PITCH;                                                        \
        bool in_row = (first) + row < (tokens);                                                                             \
        vec4 value;                                                                                                         \
        if (FOUR != 0) value = vec4(four[(at + min(d, D - 4)) / 4]);                                                        \
        else value = vec4(one[at + min(d, D - 1)], one[at + min(d + 1, D - 1)], one[at + min(d + 2, D - 1)], one[at + min(d + 3, D - 1)]); \
        value = mix(vec4(0), value, lessThan(uvec4(d, d + 1, d + 2, d + 3), uvec4(in_row ? D : 0)));                        \
        tile[col * (pitch) + row] = value.x;                                                                                \
        tile[(col + 1) * (pitch) + row] = value.y;                                                                          \
        tile[(col + 2) * (pitch) + row] = value.z;                                                                          \
        tile[(col + 3) * (pitch) + row] = value.w;                                                                          \
    }

// acc[n][chunk * E + e] += part[n][e] without an index that varies: registers have none, and compilers would choose among all of them at every use.
// (They do not unroll the loop over chunks, because there are loops inside.)
#define ADD_PART(acc, part, COUNT, chunk)                      \
    [[unroll]] for (uint c_ = 0; c_ < CHUNKS; c_++)            \
        if (c_ == (chunk))                                     \
            [[unroll]] for (uint n_ = 0; n_ < COUNT; n_++)     \
                [[unroll]] for (uint e_ = 0; e_ < E; e_++) acc[n_][c_ * E + e_] += part[n_][e_];

bool sees(uint query, uint key) { return query < p.tq && key < p.tk && (CAUSAL == 0 || key <= query); }
