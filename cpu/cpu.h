/* Own matrix kernels for x86-64: one register tile serves linear layers, convolutions (direct and Winograd), their backward-data
   products, and attention. They are compiled once for each instruction set; which one runs is chosen when the program starts. Where there
   is none (other processors), the ops use BLAS.

   Weights are read as stored (fp16, bf16, fp32): a panel of them is expanded into the cache just before its use, so there is neither a
   second copy of them nor a buffer of gathered pixels. Products of bf16 operands also read weights that were packed once, instead of what
   was stored. Sums are fp32. */
#ifndef VULORA_CPU_CPU_H
#define VULORA_CPU_CPU_H

#include "base/dtype.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where the rows of a convolution's left operand come from: row p is the output pixel p, images one after the other, and tap t reads
   the source pixel it sees there; outside the image, zeros. Forward: source = out * stride + tap - pad. Backward: the source is the
   output of a forward convolution, source * stride = out + pad - tap where that divides. */
typedef struct cpu_gather {
    int64_t height, width;               /* of the result */
    int64_t source_height, source_width; /* of an image of `a` */
    int kernel, stride, pad;
    bool backward;
} cpu_gather;

/* C [m, n] = residual + scale * (sum over taps of A_tap [m, k] B_tap [k, n]) + bias + shift. Everything but A, B and C is fp32. */
typedef struct cpu_gemm {
    int64_t m, n, k;
    int taps;                 /* 1, or kernel * kernel */
    const cpu_gather *gather; /* NULL: row i of A is a + i * lda */
    const void *a;
    dtype a_type; /* F32; where the product is one of bf16 operands (cpu_kernels.narrow) also BF16 */
    int64_t lda;
    const void *b; /* [tap][n][k]; with kn: [tap][k][n] */
    dtype b_type;  /* F32, F16 or BF16 */
    bool packed;   /* b is what cpu_kernels.pack made of the same weights, whose outputs are n, or with kn are k */
    bool kn;
    float scale;
    const float *bias;     /* [n] or NULL */
    const float *shift;    /* [m / rows_per_image, n] or NULL */
    const float *residual; /* [m, n] or NULL; may be c itself */
    void *c;               /* [m, n] */
    dtype c_type;          /* like a_type */
    int64_t rows_per_image;
    bool gated; /* C [m, n / 2] = value * gelu(gate), the halves of what C would be; only where `narrow`, taps 1, n a multiple of 64,
                   neither kn, shift nor residual */
    bool bf16;  /* operands of the products are rounded to bf16 where the processor has such products */
} cpu_gemm;

/* Weights [tap][outputs][inputs] as they are stored. */
typedef struct cpu_weights {
    const void *data;
    dtype type; /* F32, F16 or BF16 */
    int taps;
    int64_t outputs, inputs;
} cpu_weights;

/* Gradient of a weight: dw [tap][outputs][inputs] += scale * (dy [rows, outputs])^T (rows of x [.., inputs] seen through tap). */
typedef struct cpu_weight_grad {
    int64_t rows, outputs, inputs;
    int taps;
    const cpu_gather *gather; /* of the forward convolution; NULL: row i of dy sees row i of x */
    const void *dy, *x;
    dtype dy_type, x_type; /* F32; with bf16 also BF16 */
    float *dw;
    float scale;
    bool bf16; /* of a linear layer: operands are rounded to bf16 where the processor has such products */
} cpu_weight_grad;

/* Attention over heads. Element i of token t of image b in head h of q: q[((b * tq + t) * heads + h) * width + i]; k and v likewise. */
typedef struct cpu_attention {
    int64_t images, heads, tq, tk, width;
    bool causal; /* token t sees keys 0..t */
    float scale;
    const void *q, *k, *v;
    void *o;    /* like q */
    float *lse; /* [images, heads, tq]: log of the sum of exp(score); written forward, read backward */
    /* backward only */
    const void *dout; /* gradient of o */
    void *dq, *dk, *dv;
    bool bf16; /* operands of products, and o and dout, are rounded to bf16 */
    /* F32; with bf16 also BF16 */
    dtype q_type, k_type, v_type, o_type, dout_type, dq_type, dk_type, dv_type;
} cpu_attention;

/* One instruction set's kernels. Scratch sizes are in bytes for `threads` threads; scratch memory is aligned to 64. Kernels use
   OpenMP's threads, at most `threads` of them, and give the same result for any number of them. */
typedef struct cpu_kernels {
    const char *name; /* "avx2", "avx512", "avx512bf16", "amx" */
    const char *fp32; /* the set that computes in fp32: itself, or the one it builds on */
    bool bf16;        /* has products of bf16 operands */
    /* Whether gemm computes this product from operands rounded to bf16, and so may read A and write C as such. NULL: never. */
    bool (*narrow)(const cpu_gemm *g);
    /* Weights rounded to bf16, in the order that products of both directions read them in; out: aligned to 64. NULL where none has use
       for it. Only products for which `narrow` is true read such weights. */
    size_t (*pack_bytes)(const cpu_weights *w);
    void (*pack)(const cpu_weights *w, void *out);
    size_t (*gemm_scratch)(const cpu_gemm *g, int threads);
    void (*gemm)(const cpu_gemm *g, int threads, void *scratch);
    size_t (*weight_grad_scratch)(const cpu_weight_grad *g, int threads);
    void (*weight_grad)(const cpu_weight_grad *g, int threads, void *scratch);
    /* 3x3, stride 1, pad 1 by Winograd's F(4x4, 3x3) (Lavin & Gray 2015): whether it serves this product, and faster. */
    bool (*winograd_serves)(const cpu_gemm *g);
    size_t (*winograd_scratch)(const cpu_gemm *g, int threads);
    void (*winograd)(const cpu_gemm *g, int threads, void *scratch);
    size_t (*attention_scratch)(const cpu_attention *a, int threads);
    void (*attention)(const cpu_attention *a, int threads, void *scratch);
    size_t (*attention_grad_scratch)(const cpu_attention *a, int threads);
    void (*attention_grad)(const cpu_attention *a, int threads, void *scratch);
} cpu_kernels;

/* Makes this thread and OpenMP's take numbers below 1e-38 for zero: sums of tiny probabilities are slow otherwise. Threads made later by
   one of these do the same. */
void cpu_tiny_to_zero(int threads);

/* name: "auto" (the best this processor runs), "portable" (none: *kernels = NULL), or an instruction set. */
bool cpu_kernels_find(const char *name, const cpu_kernels **kernels, error *err);
/* Number i of those this processor runs, best first; NULL behind the last. */
const cpu_kernels *cpu_kernels_at(int i);

#endif
