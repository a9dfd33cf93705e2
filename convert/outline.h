/* What an adapter file alone tells about the model it is for: the modules it names, with sizes from its own tensors. It stands in for a
   model's module table where nothing depends on the weights. */
#ifndef VULORA_CONVERT_OUTLINE_H
#define VULORA_CONVERT_OUTLINE_H

#include "lora/file.h"
#include "lora/modules.h"

/* Freed with module_table_free. Modules that no kind recognises are left out. (IA)^3 and OFT tell one side of a weight only: both get it.
   Whether a weight is a convolution, and whether there is a bias, is known from Stable Diffusion 1.x' names. */
module_table *outline_create(const adapter_file *file);

/* "lora_unet_mid_block_attentions_0_proj_in" is "mid_block.attentions.0.proj_in". Freed by the caller. */
char *outline_path(const char *flat);

#endif
