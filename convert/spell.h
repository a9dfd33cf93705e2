/* Writing a draft in one of the spellings that programs read (formats.md 2 and 6). */
#ifndef VULORA_CONVERT_SPELL_H
#define VULORA_CONVERT_SPELL_H

#include "convert/draft.h"
#include "formats/safetensors.h"

typedef enum spell_format {
    SPELL_KOHYA,    /* one file for webui, ComfyUI, sd-scripts: lora_unet_..., lora_te_... */
    SPELL_PEFT,     /* a folder: OUT/unet and OUT/text_encoder, each with adapter_config.json and adapter_model.safetensors */
    SPELL_DIFFUSERS /* one file: unet....lora_A.weight, text_encoder....; no alpha, the scale is in the second factor */
} spell_format;

/* "kohya", "peft", "diffusers". */
bool spell_format_find(const char *name, spell_format *out);

typedef struct spell_options {
    spell_format format;
    dtype type; /* of all tensors; DTYPE_COUNT: each keeps its own */
    const safetensors_pair *metadata;
    size_t metadata_count;
    const safetensors_tensor *const *others; /* tensors of no module that kohya's files may carry (bundle_emb): copied as they are */
    size_t other_count;
} spell_options;

/* What the format cannot hold is refused, with the module and the way out. Scales may be folded into tensors of the draft. Nothing is left
   half-written; a folder's files are replaced one by one. */
bool spell_write(draft *d, const char *path, const spell_options *o, error *err);

/* Multiplies the tensor, and marks it as computed. */
void spell_fold(draft_tensor *t, double factor);

/* A float32 number in the fewest digits that give it back, for JSON and names. */
double spell_number(double value);

#endif
