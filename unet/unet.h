/* The denoising U-Net of Stable Diffusion 1.x (Rombach et al. 2022; diffusers' UNet2DConditionModel). All sizes come from the checkpoint.
 */
#ifndef VULORA_UNET_UNET_H
#define VULORA_UNET_UNET_H

#include "lora/layer.h"

/* Channels of the time embedding's sinusoid: the width of conv_in's output. */
int64_t unet_time_channels(const checkpoint *c);
/* Sinusoidal embedding of timesteps (cosines first, then sines; frequencies 10000^(-i / half)): out [n, channels]. */
void unet_embed_timesteps(const float *timesteps, int n, int64_t channels, float *out);

/* Noise prediction [n, h, w, 4]. sample: [n, h, w, 4], any h and w; time: [n, unet_time_channels]; context: [n, tokens, width].
   Every resnet-and-transformer pair is a segment of the tape (for checkpointing). */
tensor *unet_forward(const layer_scope *s, tensor *sample, tensor *time, tensor *context);

#endif
