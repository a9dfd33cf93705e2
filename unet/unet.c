#include "unet/unet.h"

#include <math.h>

enum { MOST_SKIPS = 32 };

/* The GroupNorm in front of a transformer and LayerNorms in it; resnets take theirs from the configuration. */
static const float TRANSFORMER_GROUP_EPS = 1e-6f, LAYER_EPS = 1e-5f;

int64_t unet_time_channels(const checkpoint *c) {
    const checkpoint_tensor *w = checkpoint_find(c, CHECKPOINT_UNET, "time_embedding.linear_1.weight");
    return w && w->rank == 2 ? w->dims[1] : 0;
}

void unet_embed_timesteps(const float *timesteps, int n, int64_t channels, float *out) {
    int64_t half = channels / 2;
    for (int i = 0; i < n; i++)
        for (int64_t j = 0; j < half; j++) {
            /* The exponent is rounded to float as PyTorch does it, or large timesteps differ in the third digit. */
            float frequency = (float)exp((double)((float)(-log(10000.0)) * (float)j / (float)half)), angle = timesteps[i] * frequency;
            out[i * channels + j] = (float)cos((double)angle);
            out[i * channels + half + j] = (float)sin((double)angle);
        }
}

static const checkpoint_config *config(const layer_scope *s) { return &weights_checkpoint(s->weights)->config; }

static bool has(const layer_scope *s, const char *name) {
    return checkpoint_find(weights_checkpoint(s->weights), CHECKPOINT_UNET, name) != NULL;
}

static const char *at(module_path *p, const char *module, const char *child) { return module_path_format(p, "%s.%s", module, child); }

/* x: [n, h, w, c] -> [n, h, w, c']; time: SiLU of the time embedding */
static tensor *resnet(const layer_scope *s, tensor *x, tensor *time, const char *name) {
    module_path p;
    const checkpoint_config *c = config(s);
    tensor *shift = layer_linear(s, time, NULL, at(&p, name, "time_emb_proj"));
    tensor *h = layer_group_norm(s, x, c->unet_norm_groups, c->unet_norm_eps, true, at(&p, name, "norm1"));
    h = layer_conv2d(s, h, NULL, shift, 1, at(&p, name, "conv1"));
    h = layer_group_norm(s, h, c->unet_norm_groups, c->unet_norm_eps, true, at(&p, name, "norm2"));
    if (has(s, at(&p, name, "conv_shortcut.weight"))) x = layer_linear(s, x, NULL, at(&p, name, "conv_shortcut"));
    return layer_conv2d(s, h, x, NULL, 1, at(&p, name, "conv2"));
}

/* hidden + attention(normed, context); context NULL: self-attention */
static tensor *attention(const layer_scope *s, tensor *hidden, tensor *normed, tensor *context, int heads, const char *name) {
    module_path p;
    tensor *source = context ? context : normed;
    tensor *q = layer_linear(s, normed, NULL, at(&p, name, "to_q"));
    tensor *k = layer_linear(s, source, NULL, at(&p, name, "to_k"));
    tensor *v = layer_linear(s, source, NULL, at(&p, name, "to_v"));
    return layer_linear(s, op_attention(s->tape, q, k, v, heads, false), hidden, at(&p, name, "to_out.0"));
}

static tensor *transformer_block(const layer_scope *s, tensor *h, tensor *context, int heads, const char *name) {
    module_path p, q;
    h = attention(s, h, layer_layer_norm(s, h, LAYER_EPS, at(&p, name, "norm1")), NULL, heads, at(&q, name, "attn1"));
    h = attention(s, h, layer_layer_norm(s, h, LAYER_EPS, at(&p, name, "norm2")), context, heads, at(&q, name, "attn2"));
    tensor *normed = layer_layer_norm(s, h, LAYER_EPS, at(&p, name, "norm3"));
    tensor *gated = op_geglu(s->tape, layer_linear(s, normed, NULL, at(&p, name, "ff.net.0.proj")));
    return layer_linear(s, gated, h, at(&p, name, "ff.net.2"));
}

/* x: [n, h, w, c] */
static tensor *transformer(const layer_scope *s, tensor *x, tensor *context, int heads, const char *name) {
    module_path p;
    tensor *h = layer_group_norm(s, x, config(s)->unet_norm_groups, TRANSFORMER_GROUP_EPS, false, at(&p, name, "norm"));
    h = layer_linear(s, h, NULL, at(&p, name, "proj_in"));
    for (int i = 0; has(s, module_path_format(&p, "%s.transformer_blocks.%d.norm1.weight", name, i)); i++)
        h = transformer_block(s, h, context, heads, module_path_format(&p, "%s.transformer_blocks.%d", name, i));
    return layer_linear(s, h, x, at(&p, name, "proj_out"));
}

/* Resnet j of a block and, where the block has attention, its transformer. */
static tensor *stage(const layer_scope *s, tensor *x, tensor *time, tensor *context, int heads, const char *block, int j) {
    module_path p;
    tape_segment(s->tape);
    x = resnet(s, x, time, module_path_format(&p, "%s.resnets.%d", block, j));
    if (!has(s, module_path_format(&p, "%s.attentions.%d.norm.weight", block, j))) return x;
    return transformer(s, x, context, heads, module_path_format(&p, "%s.attentions.%d", block, j));
}

static bool has_stage(const layer_scope *s, const char *block, int j) {
    module_path p;
    return has(s, module_path_format(&p, "%s.resnets.%d.norm1.weight", block, j));
}

typedef struct skips {
    tensor *of[MOST_SKIPS];
    int count;
} skips;

static tensor *push(const layer_scope *s, skips *stack, tensor *x) {
    if (stack->count == MOST_SKIPS) return tape_fail(s->tape, "the U-Net has more than %d skip connections", MOST_SKIPS);
    return stack->of[stack->count++] = x;
}

static tensor *down(const layer_scope *s, tensor *x, tensor *time, tensor *context, skips *stack) {
    module_path block, p;
    for (int i = 0; i < config(s)->unet_levels; i++) {
        module_path_format(&block, "down_blocks.%d", i);
        for (int j = 0; has_stage(s, block.text, j); j++)
            x = push(s, stack, stage(s, x, time, context, config(s)->unet_heads[i], block.text, j));
        if (has(s, at(&p, block.text, "downsamplers.0.conv.weight")))
            x = push(s, stack, layer_conv2d(s, x, NULL, NULL, 2, at(&p, block.text, "downsamplers.0.conv")));
    }
    return x;
}

static tensor *middle(const layer_scope *s, tensor *x, tensor *time, tensor *context) {
    int heads = config(s)->unet_heads[config(s)->unet_levels - 1];
    x = stage(s, x, time, context, heads, "mid_block", 0);
    return stage(s, x, time, context, heads, "mid_block", 1);
}

/* Enlarges to the size of the skip connection that comes next, so odd sizes meet again. */
static tensor *upsample(const layer_scope *s, tensor *x, const skips *stack, const char *block) {
    module_path p;
    if (!x || !stack->count || !has(s, at(&p, block, "upsamplers.0.conv.weight"))) return x;
    const tensor *next = stack->of[stack->count - 1];
    return layer_conv2d(s, op_upsample(s->tape, x, next->dim[1], next->dim[2]), NULL, NULL, 1, at(&p, block, "upsamplers.0.conv"));
}

static tensor *up(const layer_scope *s, tensor *x, tensor *time, tensor *context, skips *stack) {
    module_path block;
    int levels = config(s)->unet_levels;
    for (int i = 0; i < levels; i++) {
        module_path_format(&block, "up_blocks.%d", i);
        for (int j = 0; has_stage(s, block.text, j); j++) {
            if (!stack->count)
                return tape_fail(s->tape, "%s.resnets.%d has no skip connection left: not a Stable Diffusion 1.x U-Net", block.text, j);
            x = stage(s, op_concat(s->tape, x, stack->of[--stack->count]), time, context, config(s)->unet_heads[levels - 1 - i], block.text,
                      j);
        }
        x = upsample(s, x, stack, block.text);
    }
    return x;
}

tensor *unet_forward(const layer_scope *s, tensor *sample, tensor *time, tensor *context) {
    skips stack = {0};
    time = op_activation(s->tape, layer_linear(s, time, NULL, "time_embedding.linear_1"), ACTIVATION_SILU);
    time = op_activation(s->tape, layer_linear(s, time, NULL, "time_embedding.linear_2"), ACTIVATION_SILU);
    tensor *x = push(s, &stack, layer_conv2d(s, sample, NULL, NULL, 1, "conv_in"));
    x = down(s, x, time, context, &stack);
    x = middle(s, x, time, context);
    x = up(s, x, time, context, &stack);
    tape_segment(s->tape);
    x = layer_group_norm(s, x, config(s)->unet_norm_groups, config(s)->unet_norm_eps, true, "conv_norm_out");
    return layer_conv2d(s, x, NULL, NULL, 1, "conv_out");
}
