/* What the files of checkpoint_*.c share; not for other rooms. */
#ifndef VULORA_FORMATS_CHECKPOINT_INTERNAL_H
#define VULORA_FORMATS_CHECKPOINT_INTERNAL_H

#include "formats/checkpoint.h"

/* Names what a file is by its tensors when it is known and not an SD 1.x model: an error saying so, else true. */
bool checkpoint_kind_check_file(const safetensors *st, error *err);

/* The same for a diffusers folder, by model_index.json and the folders in it. */
bool checkpoint_kind_check_folder(const char *path, error *err);

/* The three parts are there and fit each other: channels, context width, latents. Fills config's unet_levels and vae_latent_channels. */
bool checkpoint_kind_check_parts(checkpoint *c, error *err);

/* SD 1.5's values, for whatever a folder does not say. */
void checkpoint_config_default(checkpoint_config *config);

/* A diffusers folder's config.json of U-Net and text encoder, scheduler and tokenizer. `folder`: the model's. */
bool checkpoint_config_read(checkpoint_config *config, const char *folder, error *err);

/* config.json of a VAE's folder; a folder without one is an error. */
bool checkpoint_config_read_vae(checkpoint_config *config, const char *folder, error *err);

/* Head counts against the shapes, once the parts are known. */
bool checkpoint_config_finish(checkpoint *c, error *err);

#endif
