#include "lora/layer.h"

#include "lora/stack.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct tensor_name {
    char text[192];
} tensor_name;

static const char *tensor_name_of(tensor_name *n, const char *module, const char *what) {
    snprintf(n->text, sizeof n->text, "%s.%s", module, what);
    return n->text;
}

static tensor *layer_weight(const layer_scope *s, const char *name) {
    tensor_name n;
    return weights_get(s->weights, s->tape, tensor_name_of(&n, name, "weight"));
}

static bool ends_with(const char *text, const char *ending) {
    size_t n = strlen(text), m = strlen(ending);
    return n >= m && strcmp(text + n - m, ending) == 0;
}

/* The U-Net's attention has no bias at its queries, keys and values; everything else has one, and a file that lacks it is not whole. */
static tensor *layer_bias(const layer_scope *s, const char *name) {
    tensor_name n;
    tensor_name_of(&n, name, "bias");
    bool optional =
        weights_part(s->weights) == CHECKPOINT_UNET && (ends_with(name, ".to_q") || ends_with(name, ".to_k") || ends_with(name, ".to_v"));
    return optional ? weights_get_optional(s->weights, n.text) : weights_get(s->weights, s->tape, n.text);
}

static tensor *layer_product(const layer_scope *s, tensor *x, const layer_addend *add, const conv_shape *conv, const char *name) {
    tensor *weight = layer_weight(s, name);
    if (!x || !weight) return NULL;
    adapter_site site = {.part = weights_part(s->weights), .name = name, .conv = conv, .weight = weight};
    adapter_chain chain = {.stack = s->adapters, .tape = s->tape, .site = &site};
    return adapter_chain_product(&chain, s->adapters ? adapter_stack_count(s->adapters) : 0, x, add);
}

tensor *layer_linear(const layer_scope *s, tensor *x, tensor *residual, const char *name) {
    return layer_product(s, x, &(layer_addend){.bias = layer_bias(s, name), .residual = residual}, NULL, name);
}

tensor *layer_conv2d_padded(const layer_scope *s, tensor *x, tensor *residual, tensor *shift, conv_shape shape, const char *name) {
    return layer_product(s, x, &(layer_addend){.bias = layer_bias(s, name), .residual = residual, .shift = shift}, &shape, name);
}

/* A 1x1 convolution's weight is a matrix, and it is a linear layer over the channels of each pixel. */
tensor *layer_conv2d(const layer_scope *s, tensor *x, tensor *residual, tensor *shift, int stride, const char *name) {
    tensor *weight = layer_weight(s, name);
    if (!weight) return NULL;
    if (weight->rank == 2) {
        if (stride == 1 && !shift) return layer_linear(s, x, residual, name);
        return tape_fail(s->tape, "%s: 1x1 convolutions have neither stride nor shift here", name);
    }
    return layer_conv2d_padded(s, x, residual, shift, (conv_shape){.kernel = 3, .stride = stride, .pad_before = 1, .pad_after = 1}, name);
}

/* gamma and beta of a norm, as the adapters leave them. */
static void norm_weights(const layer_scope *s, const char *name, tensor **gamma, tensor **beta) {
    *gamma = layer_weight(s, name);
    *beta = layer_bias(s, name);
    if (s->adapters && *gamma && *beta) adapter_chain_norm(s->adapters, s->tape, weights_part(s->weights), name, gamma, beta);
}

tensor *layer_group_norm(const layer_scope *s, tensor *x, int groups, float eps, bool silu, const char *name) {
    tensor *gamma, *beta;
    norm_weights(s, name, &gamma, &beta);
    return op_group_norm(s->tape, x, gamma, beta, groups, eps, silu);
}

tensor *layer_layer_norm(const layer_scope *s, tensor *x, float eps, const char *name) {
    tensor *gamma, *beta;
    norm_weights(s, name, &gamma, &beta);
    return op_layer_norm(s->tape, x, gamma, beta, eps);
}

const char *module_path_format(module_path *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(p->text, sizeof p->text, format, args);
    va_end(args);
    return p->text;
}
