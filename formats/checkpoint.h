/* A Stable Diffusion 1.x model, opened from a single file in the original layout or from a diffusers folder: three tables of tensors
   under diffusers' names, and what their shapes cannot tell. Weights stay memory-mapped as stored. */
#ifndef VULORA_FORMATS_CHECKPOINT_H
#define VULORA_FORMATS_CHECKPOINT_H

#include "base/dtype.h"
#include "base/error.h"
#include "formats/safetensors.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHECKPOINT_LEVELS_MAX 8
#define CHECKPOINT_RANK_MAX 4

typedef enum checkpoint_part { CHECKPOINT_UNET, CHECKPOINT_VAE, CHECKPOINT_TEXT_ENCODER, CHECKPOINT_PARTS } checkpoint_part;

/* One weight. Convolutions are [out, in, kh, kw], linear layers [out, in] as in PyTorch. The data is aligned to its type, and the type
   is F32, F16 or BF16. */
typedef struct checkpoint_tensor {
    char *name;         /* diffusers' name within its part: "down_blocks.0.resnets.0.conv1.weight" */
    const char *stored; /* its name in the file, for messages */
    const char *file;   /* the file it is in */
    dtype type;
    int rank;
    int64_t dims[CHECKPOINT_RANK_MAX];
    size_t elements;
    const void *data;
    size_t bytes;
} checkpoint_tensor;

typedef struct checkpoint_table {
    checkpoint_tensor *tensors; /* by name */
    size_t count;
    size_t parameters; /* elements of all */
    size_t bytes;      /* as stored */
    size_t ignored;    /* tensors of this part that no SD 1.x model has (none of them is used) */
    char *path;        /* file or folder it came from; NULL while the part is missing */
} checkpoint_table;

typedef enum checkpoint_activation { CHECKPOINT_QUICK_GELU, CHECKPOINT_GELU } checkpoint_activation;
typedef enum checkpoint_betas { CHECKPOINT_SCALED_LINEAR, CHECKPOINT_LINEAR } checkpoint_betas;

/* What shapes do not tell. A single file gets SD 1.5's values; a folder's config.json files say their own. */
typedef struct checkpoint_config {
    int unet_levels;                       /* from the tensors */
    int unet_heads[CHECKPOINT_LEVELS_MAX]; /* of level i, 0 being the finest; the middle block has the last level's */
    int unet_norm_groups;                  /* 32 */
    float unet_norm_eps;                   /* 1e-5, in resnets and conv_norm_out; the GroupNorm before a transformer has 1e-6 always */
    int text_heads;                        /* width / 64 */
    checkpoint_activation text_activation; /* quick_gelu */
    float text_norm_eps;                   /* 1e-5 */
    float vae_scaling_factor;              /* 0.18215: the U-Net's latents are the VAE's times this */
    int vae_latent_channels;               /* from the tensors: 4 */
    int vae_norm_groups;                   /* 32 */
    double beta_start, beta_end;           /* 0.00085, 0.012 */
    checkpoint_betas beta_schedule;        /* scaled_linear */
    int train_timesteps;                   /* 1000 */
    char *tokenizer;                       /* folder with vocab.json and merges.txt, or NULL */
} checkpoint_config;

typedef struct checkpoint {
    char *path;
    bool folder; /* a diffusers folder */
    checkpoint_table parts[CHECKPOINT_PARTS];
    checkpoint_config config;
    safetensors *files;
    size_t file_count;
    void **copies; /* tensors that could not be used in place */
    size_t copy_count;
} checkpoint;

/* Opens a model. vae: a file or folder whose VAE replaces the model's own, or NULL. Refuses by name what is not a whole SD 1.x model
   (SD 2, SDXL, SD 3, Flux, inpainting, adapters, single parts, other dtypes). On error nothing is left open. */
bool checkpoint_open(checkpoint *c, const char *path, const char *vae, error *err);
void checkpoint_close(checkpoint *c);

/* The tensor of that (diffusers) name, or NULL. */
const checkpoint_tensor *checkpoint_find(const checkpoint *c, checkpoint_part part, const char *name);

/* As checkpoint_find; a tensor that is not there is an error naming model, part and tensor. */
const checkpoint_tensor *checkpoint_need(const checkpoint *c, checkpoint_part part, const char *name, error *err);

/* As checkpoint_need, for a tensor that must have this shape (dims: [rank]; -1 stands for any size). */
const checkpoint_tensor *checkpoint_need_shape(const checkpoint *c, checkpoint_part part, const char *name, int rank, const int64_t *dims,
                                               error *err);

/* Tells memory that the tensor's bytes in the file will not be read again soon (they are read back when they are). */
void checkpoint_forget(const checkpoint *c, const checkpoint_tensor *tensor);

/* "U-Net", "VAE", "text encoder" */
const char *checkpoint_part_name(checkpoint_part part);

#endif
