/* The operations. Each lives in one file of this folder: shape rule, gradient rule, CPU kernel, Vulkan dispatch.
   Activations are [n, h, w, c] or [n, tokens, c] (the same memory); "rows" is the product of all dimensions but the last.
   All return NULL after a failed check (see graph/tape.h). */
#ifndef VULORA_OPS_OPS_H
#define VULORA_OPS_OPS_H

#include "graph/tape.h"

/* gemm.c. x: [..., k], w: [n, k], bias: [n] or NULL, residual: [..., n] or NULL. Returns residual + scale * (x w^T) + bias: [..., n]. */
tensor *op_linear(tape *t, tensor *x, tensor *w, tensor *bias, tensor *residual, float scale);

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

/* layout.c */
tensor *op_sum_pixels(tape *t, tensor *x /* [n, ..., c] */);                        /* over everything between: [n, c] */
tensor *op_concat(tape *t, tensor *a, tensor *b);                                   /* along the last dimension */
tensor *op_upsample(tape *t, tensor *x /* [n, h, w, c] */, int64_t oh, int64_t ow); /* nearest, as torch.nn.functional.interpolate(size=) */

/* loss.c. Mean over all elements of (prediction - target)^2: fp32 [1]. */
tensor *op_mse(tape *t, tensor *prediction, tensor *target);

/* optimizer.c: the update, on a tape of its own that runs after `accumulation` runs of the gradient tape.
   norm: [1], the square root of the sum over all gradients of (grad / loss scale)^2; non-finite if any gradient is. */
tensor *op_grad_norm(tape *t, tensor *const *grads, int count, tensor *control);
/* One AdamW step (Loshchilov & Hutter; torch.optim.AdamW) of every element of param, and grad = 0.
   control: fp32 [8] input: 0 learning rate, 1 beta1, 2 beta2, 3 eps, 4 weight decay, 5 1 - beta1^t, 6 1 - beta2^t, 7 1 / loss scale.
   max_norm > 0: gradients are scaled by min(1, max_norm / (norm + 1e-6)) (torch.nn.utils.clip_grad_norm_). A non-finite norm leaves
   everything as it is but grad = 0. */
void op_adamw(tape *t, tensor *param, tensor *grad, tensor *m, tensor *v, tensor *control, tensor *norm, float max_norm);

/* All ops, for tests, bench and docs: NULL behind the last. */
const op *const *op_table(void);

#endif
