#include "vae/vae.h"

static const float EPS = 1e-6f;

static int groups(const layer_scope *s) { return weights_checkpoint(s->weights)->config.vae_norm_groups; }

static bool has(const layer_scope *s, const char *name) {
    return checkpoint_find(weights_checkpoint(s->weights), CHECKPOINT_VAE, name) != NULL;
}

static const char *at(module_path *p, const char *module, const char *child) { return module_path_format(p, "%s.%s", module, child); }

static tensor *resnet(const layer_scope *s, tensor *x, const char *name) {
    module_path p;
    tensor *h = layer_group_norm(s, x, groups(s), EPS, true, at(&p, name, "norm1"));
    h = layer_conv2d(s, h, NULL, NULL, 1, at(&p, name, "conv1"));
    h = layer_group_norm(s, h, groups(s), EPS, true, at(&p, name, "norm2"));
    if (has(s, at(&p, name, "conv_shortcut.weight"))) x = layer_linear(s, x, NULL, at(&p, name, "conv_shortcut"));
    return layer_conv2d(s, h, x, NULL, 1, at(&p, name, "conv2"));
}

/* One head over all pixels. */
static tensor *attention(const layer_scope *s, tensor *x, const char *name) {
    module_path p;
    tensor *h = layer_group_norm(s, x, groups(s), EPS, false, at(&p, name, "group_norm"));
    tensor *q = layer_linear(s, h, NULL, at(&p, name, "to_q"));
    tensor *k = layer_linear(s, h, NULL, at(&p, name, "to_k"));
    tensor *v = layer_linear(s, h, NULL, at(&p, name, "to_v"));
    return layer_linear(s, op_attention(s->tape, q, k, v, 1, false), x, at(&p, name, "to_out.0"));
}

static tensor *middle(const layer_scope *s, tensor *x, const char *half) {
    module_path p;
    x = resnet(s, x, at(&p, half, "mid_block.resnets.0"));
    x = attention(s, x, at(&p, half, "mid_block.attentions.0"));
    return resnet(s, x, at(&p, half, "mid_block.resnets.1"));
}

static tensor *resnets(const layer_scope *s, tensor *x, const char *block) {
    module_path p;
    for (int j = 0; has(s, module_path_format(&p, "%s.resnets.%d.norm1.weight", block, j)); j++)
        x = resnet(s, x, module_path_format(&p, "%s.resnets.%d", block, j));
    return x;
}

tensor *vae_encode(const layer_scope *s, tensor *image) {
    static const conv_shape HALVE = {.kernel = 3, .stride = 2, .pad_before = 0, .pad_after = 1};
    module_path block, p;
    tensor *x = layer_conv2d(s, image, NULL, NULL, 1, "encoder.conv_in");
    for (int i = 0; has(s, module_path_format(&p, "encoder.down_blocks.%d.resnets.0.norm1.weight", i)); i++) {
        module_path_format(&block, "encoder.down_blocks.%d", i);
        x = resnets(s, x, block.text);
        if (has(s, at(&p, block.text, "downsamplers.0.conv.weight")))
            x = layer_conv2d_padded(s, x, NULL, NULL, HALVE, at(&p, block.text, "downsamplers.0.conv"));
    }
    x = middle(s, x, "encoder");
    x = layer_group_norm(s, x, groups(s), EPS, true, "encoder.conv_norm_out");
    x = layer_conv2d(s, x, NULL, NULL, 1, "encoder.conv_out");
    return layer_linear(s, x, NULL, "quant_conv");
}

tensor *vae_decode(const layer_scope *s, tensor *latents) {
    module_path block, p;
    tensor *x = layer_linear(s, latents, NULL, "post_quant_conv");
    x = layer_conv2d(s, x, NULL, NULL, 1, "decoder.conv_in");
    x = middle(s, x, "decoder");
    for (int i = 0; has(s, module_path_format(&p, "decoder.up_blocks.%d.resnets.0.norm1.weight", i)); i++) {
        module_path_format(&block, "decoder.up_blocks.%d", i);
        x = resnets(s, x, block.text);
        if (x && has(s, at(&p, block.text, "upsamplers.0.conv.weight")))
            x = layer_conv2d(s, op_upsample(s->tape, x, 2 * x->dim[1], 2 * x->dim[2]), NULL, NULL, 1,
                             at(&p, block.text, "upsamplers.0.conv"));
    }
    x = layer_group_norm(s, x, groups(s), EPS, true, "decoder.conv_norm_out");
    return layer_conv2d(s, x, NULL, NULL, 1, "decoder.conv_out");
}
