/* Tensor names of the three models: from the original single-file layout (latent-diffusion, "LDM") and from diffusers' older
   generations to the names that model code uses, which are diffusers' current ones (formats.md 2.2). */
#ifndef VULORA_FORMATS_CHECKPOINT_NAMES_H
#define VULORA_FORMATS_CHECKPOINT_NAMES_H

#include <stdbool.h>
#include <stddef.h>

/* U-Net: `name` is without `model.diffusion_model.`, in LDM's or diffusers' spelling. False: not a U-Net tensor of SD 1.x' topology. */
bool checkpoint_unet_name(const char *name, char *out, size_t size);

/* VAE: `name` is without `first_stage_model.`. levels: how many `decoder.up.N` the file has (LDM counts them backwards); only needed
   for LDM's spelling. */
bool checkpoint_vae_name(const char *name, unsigned levels, char *out, size_t size);

/* The N of `decoder.up.N.`, or -1. */
int checkpoint_vae_level(const char *name);

/* Text encoder: `name` is without `cond_stage_model.transformer.`, with or without `text_model.`. */
bool checkpoint_text_name(const char *name, char *out, size_t size);

/* True for the VAE's attention matrices, [c, c], which LDM stores as 1x1 convolutions [c, c, 1, 1]. Takes diffusers' name. */
bool checkpoint_vae_is_attention_matrix(const char *name);

#endif
