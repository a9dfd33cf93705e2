/* What PEFT says beside the tensors: adapter_config.json, or the same embedded in a diffusers file's metadata (formats.md 6). */
#ifndef VULORA_LORA_PEFT_H
#define VULORA_LORA_PEFT_H

#include "lora/file.h"

/* A folder's adapter_config.json; NULL on error. */
struct json_t *peft_config_read(const char *path, error *err);

/* The LoraConfig in the metadata of a diffusers file, whose keys begin with the model ("unet.r"), or with nothing when it is one
   model's. Leaves config[part] NULL where there is none. */
bool peft_config_from_metadata(const safetensors *st, struct json_t *config[CHECKPOINT_PARTS], error *err);

/* Is the module one of a list of the configuration: path endings, or one regular expression? */
bool peft_lists(const struct json_t *config, const char *key, const char *path);

/* alpha / rank, or alpha / sqrt(rank) with use_rslora; alpha by the first pattern of alpha_pattern that fits the path, else lora_alpha (of
   LoHa and LoKr `alpha`). rank 0: the tensors do not tell it, and it is the configuration's r or rank_pattern's. */
bool peft_scale(const struct json_t *config, const char *path, int64_t rank, double *scale, error *err);

#endif
