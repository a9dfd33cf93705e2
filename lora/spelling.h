/* The names of tensors in adapter files: kohya's, the original layout's, diffusers' and PEFT's, made one (formats.md 2 and 6). */
#ifndef VULORA_LORA_SPELLING_H
#define VULORA_LORA_SPELLING_H

#include "lora/file.h"

enum { SPELLING_SIZE = 256 };

typedef struct spelling {
    char module[SPELLING_SIZE]; /* "lora_unet_..." or "lora_te_...", diffusers' path flattened */
    char path[SPELLING_SIZE];   /* the dotted path as the file has it, without the model's prefix; empty for flat names */
    char shown[SPELLING_SIZE];  /* what of the key names the module */
    const char *part;           /* kohya's name of the part; static, or points into the key */
    checkpoint_part model;
    adapter_style style;
} spelling;

/* hint: the model that a name without any prefix belongs to, or CHECKPOINT_PARTS when only the name can tell.
   False: the key names no part of a module. */
bool spelling_read(const char *key, checkpoint_part hint, spelling *out);

#endif
