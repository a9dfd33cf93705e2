/* The `parameters` text that stable-diffusion-webui keeps in its PNGs: prompt, negative prompt and a line of settings. */
#ifndef VULORA_DIFFUSION_PARAMETERS_H
#define VULORA_DIFFUSION_PARAMETERS_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct parameters_lora {
    const char *name; /* as the prompt names it */
    const char *hash; /* first 12 digits of the adapter's hash (formats.md 5) */
} parameters_lora;

typedef struct parameters_values {
    const char *prompt, *negative; /* as the user wrote them; negative may be NULL or "" */
    int steps;
    const char *sampler, *schedule_type; /* labels: sampler_kind.label, sigma_spacing_label */
    float cfg;
    uint64_t seed;
    int width, height;
    const char *model_hash, *model; /* may be NULL; model_hash: first 10 digits of the file's SHA-256; model: its name without suffix */
    int clip_skip;                  /* named above 1 */
    bool cpu_noise;
    const parameters_lora *loras;
    int lora_count;
    const char *version; /* "vulora 0.1.0" */
} parameters_values;

/* The text, freed by the caller. */
char *parameters_format(const parameters_values *values);

/* What a text says, for reading pictures back: prompt, negative prompt and the settings in order, unquoted. */
typedef struct parameters_setting {
    char *key, *value;
} parameters_setting;

typedef struct parameters_text {
    char *prompt, *negative;
    parameters_setting *settings;
    int setting_count;
} parameters_text;

/* Any text can be read: a last line with fewer than three settings is part of the prompt, as in webui. */
void parameters_parse(parameters_text *out, const char *text);
void parameters_free(parameters_text *text);

/* The value of a setting, or NULL. */
const char *parameters_value(const parameters_text *text, const char *key);

#endif
