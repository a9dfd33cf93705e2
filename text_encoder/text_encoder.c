#include "text_encoder/text_encoder.h"

#include <string.h>

static const char TOKENS[] = "text_model.embeddings.token_embedding.weight",
                  POSITIONS[] = "text_model.embeddings.position_embedding.weight";

static int64_t layer_count(const checkpoint *c) {
    module_path p;
    int64_t layers = 0;
    while (
        checkpoint_find(c, CHECKPOINT_TEXT_ENCODER, module_path_format(&p, "text_model.encoder.layers.%d.layer_norm1.weight", (int)layers)))
        layers++;
    return layers;
}

bool text_encoder_get_sizes(const checkpoint *c, text_encoder_sizes *sizes, error *err) {
    const checkpoint_tensor *tokens = checkpoint_need_shape(c, CHECKPOINT_TEXT_ENCODER, TOKENS, 2, (int64_t[]){-1, -1}, err);
    if (!tokens) return false;
    const checkpoint_tensor *positions =
        checkpoint_need_shape(c, CHECKPOINT_TEXT_ENCODER, POSITIONS, 2, (int64_t[]){-1, tokens->dims[1]}, err);
    if (!positions) return false;
    *sizes = (text_encoder_sizes){
        .width = tokens->dims[1], .layers = layer_count(c), .positions = positions->dims[0], .vocabulary = tokens->dims[0]};
    return sizes->layers > 0 || error_set(err, "%s: the text encoder has no layers", c->path);
}

bool text_encoder_embed(const checkpoint *c, const int32_t *ids, int n, float *out, error *err) {
    return text_encoder_embed_more(c, ids, n, NULL, 0, out, err);
}

bool text_encoder_embed_more(const checkpoint *c, const int32_t *ids, int n, const float *more, int64_t count, float *out, error *err) {
    text_encoder_sizes sizes;
    if (!text_encoder_get_sizes(c, &sizes, err)) return false;
    const checkpoint_tensor *tokens = checkpoint_find(c, CHECKPOINT_TEXT_ENCODER, TOKENS),
                            *positions = checkpoint_find(c, CHECKPOINT_TEXT_ENCODER, POSITIONS);
    size_t width = (size_t)sizes.width, row = width * dtype_size(tokens->type), position_row = width * dtype_size(positions->type);
    for (int64_t i = 0; i < n * sizes.positions; i++, out += width) {
        int64_t behind = ids[i] - sizes.vocabulary;
        if (ids[i] < 0 || behind >= count)
            return error_set(err, "token id %d is outside the model's vocabulary of %lld", ids[i], (long long)sizes.vocabulary);
        float position[4096];
        if (width > 4096) return error_set(err, "%s: a text encoder %zu wide is not Stable Diffusion 1.x", c->path, width);
        if (behind < 0)
            dtype_to_f32(out, (const char *)tokens->data + (size_t)ids[i] * row, tokens->type, width);
        else
            memcpy(out, more + (size_t)behind * width, width * sizeof *out);
        dtype_to_f32(position, (const char *)positions->data + (size_t)(i % sizes.positions) * position_row, positions->type, width);
        for (size_t j = 0; j < width; j++) out[j] += position[j];
    }
    return true;
}

static const char *at(module_path *p, int layer, const char *child) {
    return module_path_format(p, "text_model.encoder.layers.%d.%s", layer, child);
}

static tensor *encoder_layer(const layer_scope *s, tensor *x, int layer) {
    const checkpoint_config *c = &weights_checkpoint(s->weights)->config;
    module_path p;
    tape_segment(s->tape);
    tensor *h = layer_layer_norm(s, x, c->text_norm_eps, at(&p, layer, "layer_norm1"));
    tensor *q = layer_linear(s, h, NULL, at(&p, layer, "self_attn.q_proj"));
    tensor *k = layer_linear(s, h, NULL, at(&p, layer, "self_attn.k_proj"));
    tensor *v = layer_linear(s, h, NULL, at(&p, layer, "self_attn.v_proj"));
    x = layer_linear(s, op_attention(s->tape, q, k, v, c->text_heads, true), x, at(&p, layer, "self_attn.out_proj"));
    h = layer_layer_norm(s, x, c->text_norm_eps, at(&p, layer, "layer_norm2"));
    h = layer_linear(s, h, NULL, at(&p, layer, "mlp.fc1"));
    h = op_activation(s->tape, h, c->text_activation == CHECKPOINT_GELU ? ACTIVATION_GELU : ACTIVATION_QUICK_GELU);
    return layer_linear(s, h, x, at(&p, layer, "mlp.fc2"));
}

static tensor *final_norm(const layer_scope *s, tensor *x) {
    return layer_layer_norm(s, x, weights_checkpoint(s->weights)->config.text_norm_eps, "text_model.final_layer_norm");
}

tensor *text_encoder_forward(const layer_scope *s, tensor *embedded, int clip_skip) {
    int layers = (int)layer_count(weights_checkpoint(s->weights));
    if (clip_skip < 1 || clip_skip > layers) return tape_fail(s->tape, "clip skip %d: this text encoder has %d layers", clip_skip, layers);
    tensor *x = embedded;
    for (int i = 0; i + clip_skip <= layers; i++) x = encoder_layer(s, x, i);
    return final_norm(s, x);
}

tensor *text_encoder_forward_both(const layer_scope *s, tensor *embedded, tensor **penultimate) {
    int layers = (int)layer_count(weights_checkpoint(s->weights));
    tensor *x = embedded;
    for (int i = 0; i < layers; i++) {
        if (i == layers - 1) *penultimate = final_norm(s, x);
        x = encoder_layer(s, x, i);
    }
    return final_norm(s, x);
}
