/* An adapter file as it lies on disk, before it meets a model: its tensors grouped by module, all spellings made one. */
#ifndef VULORA_LORA_FILE_H
#define VULORA_LORA_FILE_H

#include "formats/checkpoint.h"
#include "formats/safetensors.h"

typedef enum adapter_style {
    ADAPTER_KOHYA,     /* lora_unet_down_blocks_..., lora_te_text_model_... */
    ADAPTER_KOHYA_TE1, /* lora_te1_text_model_... */
    ADAPTER_LDM,       /* lora_unet_input_blocks_... */
    ADAPTER_OFT_UNET,  /* oft_unet_... */
    ADAPTER_DOTTED,    /* unet.down_blocks.0....lora_A.weight; PEFT's base_model.model.... */
    ADAPTER_PROCESSOR  /* ....attn1.processor.to_q_lora.down.weight */
} adapter_style;

/* One tensor of a module: its part in kohya's spelling ("lora_down.weight"). */
typedef struct adapter_part {
    const char *name;
    const safetensors_tensor *tensor;
    const safetensors *source;
} adapter_part;

typedef struct adapter_group {
    char *module; /* flat name in diffusers' spelling: "lora_unet_down_blocks_0_..." */
    char *path;   /* dotted path within its model, of ADAPTER_DOTTED and ADAPTER_PROCESSOR; else NULL */
    char *shown;  /* the module as the file spells it, for messages */
    checkpoint_part part;
    adapter_style style;
    adapter_part *parts; /* by name */
    int count;
} adapter_group;

struct json_t;

typedef struct adapter_file {
    char *path;
    safetensors sources[2];
    int source_count;
    adapter_group *groups; /* by module */
    int group_count;
    const safetensors_tensor **others; /* tensors that belong to no module */
    int other_count;
    struct json_t *config[CHECKPOINT_PARTS]; /* PEFT's, or NULL */
    bool folder;
    bool keeps_repeats;                      /* of adapter_file_look */
    const safetensors_tensor *(*repeats)[2]; /* one part of one module in two spellings: the kept tensor, the other */
    int repeat_count;
} adapter_file;

/* Opens an adapter: a .safetensors file, or a folder of PEFT's or diffusers'. Refuses by name what is no SD 1.x adapter: other
   architectures, checkpoints, textual inversions. */
bool adapter_file_open(adapter_file *file, const char *path, error *err);
/* The same for looking at a file that will not be applied: what says one thing twice is listed in `repeats` instead of refused. */
bool adapter_file_look(adapter_file *file, const char *path, error *err);
void adapter_file_close(adapter_file *file);

/* The module's tensor of that part, or NULL. */
const adapter_part *adapter_group_part(const adapter_group *g, const char *name);

/* The tensor as float32 values, freed by the caller. NaN and infinity are refused; integer types too. NULL on error. */
float *adapter_part_read(const adapter_part *part, error *err);

/* A scalar ([] or [1]) of any type; *present is false, and *value untouched, when the module has no such part. */
bool adapter_group_scalar(const adapter_group *g, const char *name, double *value, bool *present, error *err);

/* Scale by PEFT's configuration for a module of that rank; *present is false when the file has none. */
bool adapter_file_peft_scale(const adapter_file *file, const adapter_group *g, int64_t rank, bool *present, double *scale, error *err);

/* "lora_down.weight [4, 320], ..." of the module's parts, for messages. */
void adapter_group_text(const adapter_group *g, char *out, size_t size);

#endif
