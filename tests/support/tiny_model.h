/* A whole Stable Diffusion 1.5 model in miniature, random weights: the original single-file layout with every tensor that SD1.5 has,
   but 32 base channels, 64-wide text states and two text layers. About 30 MB, written in a second. For tests only. */
#ifndef VULORA_TESTS_SUPPORT_TINY_MODEL_H
#define VULORA_TESTS_SUPPORT_TINY_MODEL_H

#include "base/dtype.h"

#include <stdbool.h>
#include <stdint.h>

enum { TINY_UNET_CHANNELS = 32, TINY_VAE_CHANNELS = 32, TINY_TEXT_WIDTH = 64, TINY_TEXT_LAYERS = 2, TINY_VOCABULARY = 49408 };

typedef struct tiny_model_shape {
    int unet_channels, vae_channels; /* multiples of 32 */
    int text_width;                  /* a multiple of 64; also the U-Net's context width */
    int text_layers;
    dtype type;      /* DTYPE_F32, DTYPE_F16 or DTYPE_BF16 */
    int unet_inputs; /* channels; 0: 4, as all but inpainting models have */
} tiny_model_shape;

/* fp16 and the sizes above. */
bool tiny_model_write(const char *path, uint64_t seed);
bool tiny_model_write_shape(const char *path, uint64_t seed, tiny_model_shape shape);

/* A kohya LoRA over the attention projections of one U-Net block that fits the model of tiny_model_write: rank 4, alpha 4, fp16, both
   matrices random. With `width` other than TINY_UNET_CHANNELS it does not fit. */
bool tiny_lora_write(const char *path, uint64_t seed, int width);

#endif
