/* Putting a Vulkan dispatch together from tensors, and the matrix product that several ops share. shaders/README.md says what each
   kernel expects. */
#ifndef VULORA_OPS_KERNEL_H
#define VULORA_OPS_KERNEL_H

#include "graph/tape.h"

enum { KERNEL_BINDINGS = 10, KERNEL_CONSTANTS = 12, KERNEL_PUSH = 32 };

/* One dispatch under construction: add types, bindings, constants and push constants in the kernel's order, then run it. */
typedef struct kernel_call {
    char shader[64]; /* name and types so far: "add_hh" */
    gpu_range ranges[KERNEL_BINDINGS];
    uint32_t constants[KERNEL_CONSTANTS], push[KERNEL_PUSH];
    int range_count, constant_count, push_count, type_count;
    int subgroup; /* size asked for; 0: the driver's choice */
    uint32_t written;
} kernel_call;

kernel_call kernel_named(const char *name);
/* The element type of a binding that may be float or half. */
void kernel_type(kernel_call *k, const tensor *x);
void kernel_read(kernel_call *k, const tensor *x);
void kernel_write(kernel_call *k, const tensor *x); /* it may be read too */
void kernel_bind(kernel_call *k, gpu_range range, bool written);
/* Type and binding in one. */
void kernel_read_typed(kernel_call *k, const tensor *x);
void kernel_write_typed(kernel_call *k, const tensor *x);
void kernel_constant(kernel_call *k, int64_t value);
void kernel_push(kernel_call *k, int64_t value);
void kernel_push_float(kernel_call *k, float value);
/* A divisor for quotient() in shaders/common.glsl: two words. */
void kernel_push_divisor(kernel_call *k, int64_t divisor);

void kernel_run(const kernel_call *k, gpu_recording *rec, int64_t x, int64_t y, int64_t z, double flops);
/* For kernels with one thread per element and 128 threads per workgroup. */
void kernel_run_over(const kernel_call *k, gpu_recording *rec, int64_t elements);
/* `groups` workgroups, spread over two axes where one does not hold them. */
void kernel_run_groups(const kernel_call *k, gpu_recording *rec, int64_t groups);

/* to [outer, inner] = (accumulate: to) + the sum over splits of parts [outer, splits, inner]; all fp32, always in the same order. */
void kernel_reduce(gpu_recording *rec, const tensor *parts, const tensor *to, int64_t outer, int64_t splits, int64_t inner,
                   bool accumulate);

static inline int64_t kernel_groups(int64_t elements, int64_t group) { return (elements + group - 1) / group; }
static inline bool kernel_fours(int64_t elements) { return elements % 4 == 0; }
/* Neighbouring elements that a thread takes where rows have so many: STEP in shaders/elements.glsl. */
static inline int64_t kernel_step(int64_t elements) { return elements % 8 == 0 ? 8 : elements % 4 == 0 ? 4 : 1; }

/* C [m, n] = residual + scale * A B + bias + shift, summed over taps; the fields are those of shaders/gemm.comp. */
typedef enum gemm_a {
    GEMM_A_ROWS,
    GEMM_A_COLUMNS,
    GEMM_A_FORWARD,
    GEMM_A_BACKWARD,
    GEMM_A_CLASSES /* how gemm_half and gemm_matrix read GEMM_A_BACKWARD with a stride; calls do not ask for it */
} gemm_a;
typedef enum gemm_b { GEMM_B_NK, GEMM_B_KN, GEMM_B_GATHER } gemm_b;

/* Which kernel computes a product, and in what pieces. */
typedef enum gemm_kernel {
    GEMM_GENERAL, /* gemm.comp: any shape and type */
    GEMM_HALF,    /* gemm_half.comp: half floats in chunks of eight */
    GEMM_MATRIX   /* gemm_matrix.comp: the same on matrix units; not in every build */
} gemm_kernel;
typedef struct gemm_tiling {
    gemm_kernel kernel;
    int bm, bn, bk; /* of a workgroup, and of one step of the sum */
    int tm, tn;     /* of a thread; GEMM_MATRIX: of a subgroup */
    bool pairs;     /* GEMM_HALF: half floats in shared memory too */
    int subgroup;   /* size asked for; 0: the driver's choice */
    int splits;     /* of the sum, added up afterwards in a fixed order */
    int slices;     /* GEMM_GENERAL: groups of threads that share a tile's sum; 0: one */
    int unroll;     /* GEMM_GENERAL: k's written out one after another; 0: one */
} gemm_tiling;

typedef struct gemm_call {
    const tensor *a, *b, *c, *bias, *shift, *residual, *scratch;
    gemm_a a_mode;
    gemm_b b_mode;
    int64_t m, n, k, lda, ldb, taps, tap_b;
    bool tap_outputs; /* every tap has its own C [m, n] instead of being summed over */
    int64_t height, width, source_height, source_width, kernel, stride, pad; /* of gathered operands */
    int64_t rows_per_image;
    float scale;
    bool accumulate;           /* C += */
    const gemm_tiling *tiling; /* NULL: what suits the product and the device */
} gemm_call;

/* fp32 scratch bytes for the parts of a split sum; 0 where it is not split. */
size_t kernel_gemm_scratch(const gemm_call *g, const gpu *on);
void kernel_gemm(gpu_recording *rec, const gemm_call *g);
/* How the product would be computed there. */
gemm_tiling kernel_gemm_tiling(const gemm_call *g, const gpu *on);
/* Whether a kernel can compute the product, on any device. */
bool kernel_gemm_fits(const gemm_call *g, gemm_kernel kernel);

#endif
