/* The operations. Each lives in one file of this folder: shape rule, gradient rule, CPU kernel, Vulkan dispatch.
   Activations are [n, h, w, c] or [n, tokens, c] (the same memory); "rows" is the product of all dimensions but the last.
   All return NULL after a failed check (see graph/tape.h). */
#ifndef VULORA_OPS_OPS_H
#define VULORA_OPS_OPS_H

#include "graph/tape.h"

/* gemm.c. x: [..., k], w: [n, k], bias: [n] or NULL, residual: [..., n] or NULL. Returns residual + scale * (x w^T) + bias: [..., n]. */
tensor *op_linear(tape *t, tensor *x, tensor *w, tensor *bias, tensor *residual, float scale);

/* The same for every one of `blocks` blocks of columns: x: [..., blocks * k], result [..., blocks * n]. */
tensor *op_linear_blocks(tape *t, tensor *x, tensor *w, int64_t blocks, tensor *residual, float scale);

typedef struct conv_shape {
    int kernel;     /* 1 or 3 */
    int stride;     /* 1 or 2 */
    int pad_before; /* rows and columns of zeros above and left */
    int pad_after;  /* below and right */
} conv_shape;

/* conv.c. x: [n, h, w, c], w: [taps, out, c] with tap = ky * kernel + kx, bias: [out] or NULL, residual: [n, oh, ow, out] or NULL,
   shift: [n, out] or NULL (added to every pixel: the time embedding). Cross-correlation, as torch.nn.functional.conv2d. */
tensor *op_conv2d(tape *t, tensor *x, tensor *w, tensor *bias, tensor *residual, tensor *shift, conv_shape shape);

/* norm.c. Over groups of channels of each image; gamma, beta: [c]; silu: x * sigmoid(x) applied to the result. */
tensor *op_group_norm(tape *t, tensor *x, tensor *gamma, tensor *beta, int groups, float eps, bool silu);
/* Over the last dimension. */
tensor *op_layer_norm(tape *t, tensor *x, tensor *gamma, tensor *beta, float eps);

/* attention.c. softmax(q k^T / sqrt(c / heads)) v per head. q: [n, ..., c] with tq tokens, k, v: [n, ..., c] with tk tokens. causal: token
 * i sees keys 0..i. */
tensor *op_attention(tape *t, tensor *q, tensor *k, tensor *v, int heads, bool causal);

/* pointwise.c */
typedef enum activation { ACTIVATION_SILU, ACTIVATION_GELU, ACTIVATION_QUICK_GELU } activation;
tensor *op_activation(tape *t, tensor *x, activation kind);        /* gelu: the erf form; quick gelu: x * sigmoid(1.702 x) */
tensor *op_geglu(tape *t, tensor *x /* [..., 2c]: value, gate */); /* value * gelu(gate): [..., c] */
tensor *op_add(tape *t, tensor *a, tensor *b);

/* scale.c. Columns times factors of their own: (a + b w) x + c residual + bias + shift. Factors absent: a alone. */
typedef struct column_scale {
    tensor *w; /* [columns], fp32, or NULL */
    float a, b;
    tensor *residual; /* as x, or NULL */
    float c;
    tensor *bias;  /* [columns], fp32, or NULL */
    tensor *shift; /* [n, columns], added to every row of an image, or NULL */
} column_scale;
tensor *op_scale_columns(tape *t, tensor *x, column_scale s);

/* dropout.c. factor x, or 0 with probability `rate` (0 .. below 1). What is kept is a pure function of the key, the stream and the place:
   the choice is made anew for every element, for every column of every image, for every column, or once for everything. */
typedef enum dropout_of { DROPOUT_ELEMENTS, DROPOUT_IMAGE_COLUMNS, DROPOUT_COLUMNS, DROPOUT_WHOLE } dropout_of;
typedef struct dropout_shape {
    dropout_of of;
    int64_t stream; /* 0 .. 2^32 - 1; different for every use in a run */
    double rate;
    float factor;
} dropout_shape;
tensor *op_dropout(tape *t, tensor *x, tensor *key /* fp32 [2]: whole numbers below 2^24 */, dropout_shape s);
/* Whether the choice at that place (the element's index, or image * columns + column, column, 0) is to keep. */
bool op_dropout_keeps(const float key[2], int64_t stream, int64_t place, double rate);

/* products.c. scale times the products of two small factors: their rows and columns are each paired (equally many) or crossed. Factors hold
   one matrix, or one per tap. Returns [rows, columns] or [taps, rows, columns], fp32 if it is itself a factor, else as operands of products
   are stored. */
typedef struct products_shape {
    int64_t rows_a, columns_a, rows_b, columns_b;
    bool paired_rows, paired_columns, factor;
    float scale;
} products_shape;
tensor *op_products(tape *t, tensor *a, tensor *b, products_shape s);
/* matmul.c. scale a b of fp32 matrices [m, k] and [k, n], or one per tap ([taps, m, k], [taps, k, n]). factor: as above. */
tensor *op_matmul(tape *t, tensor *a, tensor *b, float scale, bool factor);
/* matmul.c. scale a b of fp32 matrices [m, k] and [k, n], or one per tap ([taps, m, k], [taps, k, n]). factor: as above. */
tensor *op_matmul(tape *t, tensor *a, tensor *b, float scale, bool factor);

/* blocks.c. Columns in blocks, multiplied by small fp32 factors. */
/* Columns are `blocks` blocks; y[.., l, :] = residual + scale * sum over m of w[l, m] x[.., m, :], w: [l, blocks]. blocks_first: the blocks
   of an image come before its pixels, as op_split_blocks makes them; the result has them behind in any case. */
tensor *op_mix(tape *t, tensor *x, tensor *w, int64_t blocks, bool blocks_first, tensor *residual, float scale);
/* x: [n, h, w, blocks * k]. Returns every block as an image: [n * blocks, h, w, k]. */
tensor *op_split_blocks(tape *t, tensor *x, int64_t blocks);
/* Columns are blocks [g, b] with matrices [g, b, b]: y[g, j] = sum over i of matrices[g, i, j] x[g, i]; transposed: of matrices[g, j, i].
   stride > 0: blocks are taken from the columns viewed as [c, stride, 2] instead of [c, 2, stride] (BOFT's butterfly). Matrices
   [stages, g, b, b] are as many rotations one after another, each with twice the stride of the one before. */
tensor *op_rotate(tape *t, tensor *x, tensor *matrices, int64_t stride, bool transposed);

/* cayley.c. b: [..., n, n] fp32. Orthogonal matrices (I + Q) (I - Q)^-1, Q = b - b^T; limit > 0: the norm of Q, over all blocks, is at
   most that. */
tensor *op_cayley(tape *t, tensor *b, float limit);
/* m := m^-1 in place, [n, n], Gauss-Jordan. Without pivots: the symmetric part of m must be the identity, as that of I + Q and I - Q is, so
   that every pivot is at least 1. */
void cayley_invert(double *m, int64_t n);

/* dora.c. w: frozen, [out, in] or [taps, out, in]; d: its change, fp32, as w. Returns magnitude / (norm of w + d) for every input column
   (magnitude: [in]) or output row ([out]), fp32. */
tensor *op_dora(tape *t, tensor *w, tensor *d, tensor *magnitude, bool output_axis);
/* dora_factored.c. The same where d = scale left right, fp32 [out, r] and [r, in] or [taps, r, in]: d is never made. */
tensor *op_dora_factored(tape *t, tensor *w, tensor *left, tensor *right, float scale, tensor *magnitude, bool output_axis);

/* layout.c */
tensor *op_sum_pixels(tape *t, tensor *x /* [n, ..., c] */);                        /* over everything between: [n, c] */
tensor *op_take(tape *t, tensor *x /* fp32 [n, ...] */, int64_t index);             /* x[index]: [...] */
tensor *op_concat(tape *t, tensor *a, tensor *b);                                   /* along the last dimension */
tensor *op_upsample(tape *t, tensor *x /* [n, h, w, c] */, int64_t oh, int64_t ow); /* nearest, as torch.nn.functional.interpolate(size=) */

/* loss.c. Mean over all elements of (prediction - target)^2: fp32 [1]. */
tensor *op_mse(tape *t, tensor *prediction, tensor *target);

/* optimizer.c: the update, on a tape of its own that runs after `accumulation` runs of the gradient tape.
   norm: [1], the square root of the sum over all gradients of (grad / loss scale)^2; non-finite if any gradient is. */
tensor *op_grad_norm(tape *t, tensor *const *grads, int count, tensor *control);
/* Which elements of a parameter an update touches. */
typedef struct update_gate {
    tensor *gates;        /* fp32 [n, 4] input, of each: first open rank, the one behind the last, 1 - beta1^t, 1 - beta2^t */
    int64_t index;        /* which of the n */
    int64_t inner, ranks; /* an element's rank is (index / inner) % ranks */
} update_gate;
/* One AdamW step (Loshchilov & Hutter; torch.optim.AdamW) of every element of param, and grad = 0.
   control: fp32 [8] input: 0 learning rate, 1 beta1, 2 beta2, 3 eps, 4 weight decay, 5 1 - beta1^t, 6 1 - beta2^t, 7 1 / loss scale.
   max_norm > 0: gradients are scaled by min(1, max_norm / (norm + 1e-6)) (torch.nn.utils.clip_grad_norm_). A non-finite norm leaves
   everything as it is but grad = 0. gate: only what it leaves open moves, with its own t; NULL: everything. */
void op_adamw(tape *t, tensor *param, tensor *grad, tensor *m, tensor *v, tensor *control, tensor *norm, float max_norm,
              const update_gate *gate);
/* grad = 0 for the ranks that are not open. */
void op_gate_gradient(tape *t, tensor *grad, const update_gate *gate);

/* limit.c: max-norm regularisation, on the update's tape. Square sums are fp32 [1]. */
/* ||up down||^2 (Frobenius). up: [out, r], down: [r, in] or [taps, r, in], fp32; through their Gram matrices, never the product. */
tensor *op_product_square_sum(tape *t, tensor *up, tensor *down);
/* ||x||^2 of any fp32 tensor. */
tensor *op_square_sum(tape *t, tensor *x);
/* Where n = scale sqrt(square_sum) is above `limit`, param *= (limit / n)^exponent. */
void op_limit_norm(tape *t, tensor *param, tensor *square_sum, float scale, float limit, float exponent);

/* All ops, for tests, bench and docs: NULL behind the last. */
const op *const *op_table(void);

#endif
