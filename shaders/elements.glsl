// A thread takes STEP neighbouring elements: 8, 4, or 1 where the contiguous axis allows no more; half floats then move 16, 8 or 2 bytes an
// access. In registers they are FOURS vectors of four (STEP 1: the first element of one). `at` counts in steps. Read everything before
// writing: results may take over an input's memory, and reads behind a write are not joined into wider ones.
const uint FOURS = STEP == 8 ? 2 : 1;
#define EACH_FOUR [[unroll]] for (uint k = 0; k < FOURS; k++)
#define float_4 vec4

#define INPUT(slot, name, T) \
    layout(set = 0, binding = slot) readonly buffer name##_ones { T name##1[]; }; \
    layout(set = 0, binding = slot) readonly buffer name##_fours { T##_4 name##4[]; }; \
    vec4 name(uint at, uint k) \
    { \
        if (STEP == 1) return vec4(float(name##1[at]), 0, 0, 0); \
        return vec4(name##4[at * FOURS + k]); \
    }

#define OUTPUT(slot, name, T) \
    layout(set = 0, binding = slot) writeonly buffer name##_ones { T name##1[]; }; \
    layout(set = 0, binding = slot) writeonly buffer name##_fours { T##_4 name##4[]; }; \
    void name(uint at, uint k, vec4 v) \
    { \
        if (STEP == 1) name##1[at] = T(v.x); \
        else name##4[at * FOURS + k] = T##_4(v); \
    }

// Sums over the elements of one vector.
float sum_of(vec4 v) { return STEP == 1 ? v.x : v.x + v.y + v.z + v.w; }
