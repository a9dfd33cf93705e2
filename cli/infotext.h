/* The `parameters` text of stable-diffusion-webui: how a picture was made, readable by people and by webui's "PNG Info". */
#ifndef VULORA_CLI_INFOTEXT_H
#define VULORA_CLI_INFOTEXT_H

#include "cli/draw.h"

/* An adapter as webui names it: the file's name without folder and extension, and the first 12 digits of its hash. */
typedef struct infotext_lora {
    char *name, hash[13];
    float unet_weight, text_weight;
    char blocks[BLOCK_WEIGHTS_TEXT]; /* strengths by block, or empty */
    bool in_prompt;                  /* the prompt's own text names it */
} infotext_lora;

typedef struct infotext {
    const char *prompt, *negative;
    const draw_settings *settings;
    uint64_t seed;
    const char *model;   /* file name without extension */
    char model_hash[11]; /* first 10 digits of the file's SHA-256; empty: not known */
    const infotext_lora *loras;
    int lora_count;
} infotext;

/* Freed by the caller. */
char *infotext_make(const infotext *info);

/* "dir/me.safetensors" -> "me"; freed by the caller. */
char *infotext_stem(const char *path);
/* First 10 digits of the SHA-256 of a file; empty when it is larger than what is hashed in a moment. */
void infotext_model_hash(const char *path, char out[11]);
/* What webui shows for an adapter file: sshs_model_hash, else the SHA-256 of its data; 12 digits. Empty for a folder. */
void infotext_lora_hash(const char *path, char out[13]);

#endif
