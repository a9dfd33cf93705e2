/* The modules of a model that an adapter can change: every linear layer, convolution and norm of the U-Net and the text encoder, found by
   the names that adapter files use for them. Read off the model's own tensors, so a model of any width has its own table. */
#ifndef VULORA_LORA_MODULES_H
#define VULORA_LORA_MODULES_H

#include "formats/checkpoint.h"

typedef struct module_info {
    checkpoint_part part;
    char *name; /* diffusers' path in its part: "down_blocks.0.attentions.0.proj_in" */
    char *flat; /* kohya's name: "lora_unet_down_blocks_0_attentions_0_proj_in" */
    int64_t out, in;
    int kernel; /* 1 or 3; of a norm 0 */
    bool bias;  /* it has one */
    const checkpoint_tensor *weight;
    bool convolution; /* its weight is [out, in, kernel, kernel] in files; else [out, in] */
} module_info;

typedef struct module_table {
    module_info *modules; /* by flat name */
    int count;
} module_table;

module_table *module_table_create(const checkpoint *c, error *err);
void module_table_free(module_table *table);

/* By kohya's name in diffusers' spelling (lora_unet_down_blocks_...; lora_te_text_model_...), NULL: the model has no such module. */
const module_info *module_table_find(const module_table *table, const char *flat);

/* "lora_unet_" or "lora_te_", then the path with every "." as "_". False: does not fit. */
bool module_flat_name(checkpoint_part part, const char *path, char *out, size_t size);

/* The original (LDM) spelling of a flat U-Net name, lora_unet_input_blocks_4_1_..., as diffusers' one. False: it is not LDM's. */
bool module_flat_from_ldm(const char *flat, char *out, size_t size);

#endif
