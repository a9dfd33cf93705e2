/* CLIP's text model (Radford et al. 2021; transformers' CLIPTextModel), the text encoder of Stable Diffusion 1.x. */
#ifndef VULORA_TEXT_ENCODER_TEXT_ENCODER_H
#define VULORA_TEXT_ENCODER_TEXT_ENCODER_H

#include "lora/layer.h"

/* Width of the hidden states, number of layers, number of positions (77) and of token ids. false: the model is not such a text encoder. */
typedef struct text_encoder_sizes {
    int64_t width, layers, positions, vocabulary;
} text_encoder_sizes;
bool text_encoder_get_sizes(const checkpoint *c, text_encoder_sizes *sizes, error *err);

/* Token plus position embeddings, on the host: ids [n, positions] -> out [n, positions, width]. Ids outside the vocabulary are an error. */
bool text_encoder_embed(const checkpoint *c, const int32_t *ids, int n, float *out, error *err);
/* The same with `count` more embeddings behind the vocabulary: [count, width]. */
bool text_encoder_embed_more(const checkpoint *c, const int32_t *ids, int n, const float *more, int64_t count, float *out, error *err);

/* embedded: [n, tokens, width] as above. Returns the states after the last layer but skip - 1 (A1111's clip skip: 1 = all layers, 2 = the
   penultimate states), through the final layer norm. NULL with a failure on the tape when the model has no so many layers. */
tensor *text_encoder_forward(const layer_scope *s, tensor *embedded, int clip_skip);
/* Both at once: clip skip 1, and 2 in *penultimate. */
tensor *text_encoder_forward_both(const layer_scope *s, tensor *embedded, tensor **penultimate);

#endif
