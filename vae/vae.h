/* The KL autoencoder of Stable Diffusion (Rombach et al. 2022; diffusers' AutoencoderKL): pictures of 8h x 8w pixels to latents of h x w.
 */
#ifndef VULORA_VAE_VAE_H
#define VULORA_VAE_VAE_H

#include "lora/layer.h"

/* image: [n, H, W, 3] in -1..1, H and W multiples of 8. Returns [n, H/8, W/8, 8]: the posterior's mean, then the logarithm of its variance
   (before the scaling factor; not clamped: diffusers clamps it to -30..20). */
tensor *vae_encode(const layer_scope *s, tensor *image);

/* latents: [n, h, w, 4], after division by the scaling factor. Returns [n, 8h, 8w, 3], not clamped. */
tensor *vae_decode(const layer_scope *s, tensor *latents);

#endif
