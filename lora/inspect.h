/* What an adapter file is, without a model: for `vulora inspect`. */
#ifndef VULORA_LORA_INSPECT_H
#define VULORA_LORA_INSPECT_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct adapter_rank_count {
    int64_t rank;
    int modules;
} adapter_rank_count;

typedef struct adapter_info {
    char kinds[128]; /* "lora", "loha+norm": alphabetical; "unknown" when no module is known */
    bool dora;
    int modules;
    int unet_modules, text_modules;
    int64_t parameters;
    adapter_rank_count *ranks; /* ascending */
    int rank_count;
    double alpha_min, alpha_max;            /* NaN: no alpha in the file */
    bool webui, comfyui, diffusers, sd_cpp; /* where it loads as it is (formats.md 8) */
    char **problems;
    int problem_count;
    char model_hash[65]; /* SHA-256 of the data section of the file; empty for a folder */
} adapter_info;

/* Fails only on files that are no adapter at all. */
bool adapter_inspect(const char *path, adapter_info *info, error *err);
void adapter_info_free(adapter_info *info);

#endif
