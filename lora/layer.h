/* How model code calls a layer by its diffusers name: the frozen weights are looked up, the op is appended, and whatever the adapter
   stack does at this module is added. This is the only place where adapters enter a model. */
#ifndef VULORA_LORA_LAYER_H
#define VULORA_LORA_LAYER_H

#include "formats/weights.h"
#include "ops/ops.h"

typedef struct adapter_stack adapter_stack; /* lora/stack.h */

typedef struct layer_scope {
    tape *tape;
    weights *weights;
    adapter_stack *adapters; /* NULL: the bare model */
} layer_scope;

/* name: module path without ".weight". x: [..., in]. residual: [..., out] or NULL. The bias belongs to it (the U-Net's to_q, to_k and to_v
   have none). */
tensor *layer_linear(const layer_scope *s, tensor *x, tensor *residual, const char *name);
/* x: [n, h, w, in]; the kernel size comes from the weight. Stride 1: padding keeps the size. residual, shift: as op_conv2d. */
tensor *layer_conv2d(const layer_scope *s, tensor *x, tensor *residual, tensor *shift, int stride, const char *name);
/* The VAE encoder's downsampling: stride 2, a row and a column of zeros below and right only. */
tensor *layer_conv2d_padded(const layer_scope *s, tensor *x, tensor *residual, tensor *shift, conv_shape shape, const char *name);
tensor *layer_group_norm(const layer_scope *s, tensor *x, int groups, float eps, bool silu, const char *name);
tensor *layer_layer_norm(const layer_scope *s, tensor *x, float eps, const char *name);

/* module_path_format(&p, "%s.resnets.%d", block, i): module paths without allocation. Returns p->text. */
typedef struct module_path {
    char text[160];
} module_path;
const char *module_path_format(module_path *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
