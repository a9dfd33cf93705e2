// What all matrix products share: their push constants, the result's bindings and the last step. The includer defines TC and TC_4, the
// element type of C and its vector of four, and FLAGS: what is added to the product. 1 bias, 2 shift, 4 residual, 8 C itself.
layout(push_constant) uniform Shape {
    uint M, N, K;            // K: per tap
    uint taps;               // summed over inside
    uint lda, ldb, ldc;      // row pitches in elements
    uint tap_b;              // elements from one tap of B to the next
    uint height, width;      // of the pixel grid that m (A 2, 3) or k (B 2) counts
    uint source_height, source_width; // of the image gathered from
    uint kernel, stride, pad;
    uint z_taps;             // 1: z counts taps (then splits), 0: z counts splits only
    uint splits;             // of the loop over taps and k; part s of z is stored at z * c_stride
    uint c_stride;
    uint rows_per_image;
    float scale;
} p;

layout(set = 0, binding = 2) buffer C1 { TC c[]; };
layout(set = 0, binding = 2) buffer C4 { TC_4 c4[]; };
layout(set = 0, binding = 3) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 3) readonly buffer Bias4 { vec4 bias4[]; };
layout(set = 0, binding = 4) readonly buffer Shift { TC shift[]; };        // [images][N]
layout(set = 0, binding = 4) readonly buffer Shift4 { TC_4 shift4[]; };
layout(set = 0, binding = 5) readonly buffer Residual { TC residual[]; };  // as C
layout(set = 0, binding = 5) readonly buffer Residual4 { TC_4 residual4[]; };

// What is added to four neighbours of row m from n on, all of which exist and start at a multiple of four. Callers ask for several of
// these before they store: a load behind a store waits for itself, because the residual may be C.
vec4 terms_of_four(uint m, uint n, uint base)
{
    uint at = base + m * p.ldc + n;
    vec4 v = vec4(0);
    if ((FLAGS & 1u) != 0) v += bias4[n / 4];
    if ((FLAGS & 2u) != 0) v += vec4(shift4[(m / p.rows_per_image * p.N + n) / 4]);
    if ((FLAGS & 4u) != 0) v += vec4(residual4[at / 4]);
    if ((FLAGS & 8u) != 0) v += vec4(c4[at / 4]);
    return v;
}

void store_four(uint m, uint n, uint base, vec4 product, vec4 terms) { c4[(base + m * p.ldc + n) / 4] = TC_4(p.scale * product + terms); }
