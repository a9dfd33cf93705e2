/* An adapter in memory: the modules it changes, and for each the small tensors that say how, on a device. Read from a file
   (lora/read.c), or new for training (lora/create.c); applied by an adapter stack (lora/stack.h), written by lora/save.c. */
#ifndef VULORA_LORA_ADAPTER_H
#define VULORA_LORA_ADAPTER_H

#include "graph/device.h"
#include "lora/modules.h"

typedef struct adapter_kind adapter_kind; /* lora/kind.h */

/* Behind a kind's own tensors: the trained scalar (part_factor), DoRA's magnitudes and a dense residual (lora/residual.h), of every kind
   that has them. */
enum { ADAPTER_MODULE_TENSORS = 10, ADAPTER_SCALAR = 7, ADAPTER_MAGNITUDE = 8, ADAPTER_RESIDUAL = 9 };
enum { ADAPTER_MOST_RANK = 1024 };

/* How a tensor lies in the engine. */
typedef enum adapter_layout {
    ADAPTER_MATRIX,     /* element for element as in the file; [r, in, 1, 1] becomes [r, in] */
    ADAPTER_TAPS,       /* a convolution: [out, in, kh, kw] in the file, [kh * kw, out, in] in the engine */
    ADAPTER_FLAT_TAPS,  /* the same stored as [out, in * kh * kw] */
    ADAPTER_TRANSPOSED, /* [a, b] in the file, [b, a] in the engine */
    ADAPTER_VECTOR      /* of whatever shape in the file, [n] in the engine */
} adapter_layout;

typedef struct adapter_tensor {
    char *name; /* in the file: "lora_unet_..._to_q.lora_down.weight" */
    int rank;   /* shape in the file */
    int64_t dims[4];
    int taps; /* of ADAPTER_TAPS and ADAPTER_FLAT_TAPS */
    adapter_layout layout;
    tensor *value; /* in the engine's layout; of a trained adapter fp32 with value->grad, else frozen */
    float rate;    /* what the learning rate of its part of the model is multiplied with */
} adapter_tensor;

typedef struct adapter_step adapter_step; /* lora/stepwise.h */

typedef struct adapter_module {
    const adapter_kind *kind;
    const module_info *info;
    int64_t rank;
    double alpha;        /* as files store it: of OFT the constraint, of (IA)^3 whether inputs are scaled */
    double scale;        /* what the change is multiplied with: alpha / rank for LoRA */
    tensor *start[2];    /* PiSSA (lora/start.h): what its factors began with, frozen; else NULL */
    double asked_alpha;  /* rank-stabilised: alpha as the options say it, alpha being that times the root of the rank; else 0 */
    bool dora_on_output; /* of DoRA: one magnitude per output instead of per input */
    adapter_tensor tensors[ADAPTER_MODULE_TENSORS]; /* in the kind's order; absent ones have no value */
    adapter_step *step;                             /* while a training tape is recorded, else NULL */
} adapter_module;

/* What can be trained: one row for every name of --kind. */
typedef struct adapter_trainee {
    const char *name;
    const adapter_kind *kind;
    const char *targets;            /* when none are asked for */
    const char *module, *algorithm; /* sd-scripts' network_module, and its argument algo (NULL: none), for metadata */
} adapter_trainee;

enum { DYLORA_BLOCK_SIZE = 4 /* as LyCORIS */ };

/* What a training does differently from step to step (lora/stepwise.h). */
typedef struct adapter_stepwise {
    double network_dropout, rank_dropout, module_dropout; /* rates below 1; 0: none */
    int block_size;                                       /* dylora: ranks that an update trains; 0: DYLORA_BLOCK_SIZE */
    double max_norm;                                      /* of a module's change after an update; 0: any */
} adapter_stepwise;

typedef struct adapter {
    char *path; /* the file it came from; NULL: new */
    device *device;
    tensor_pool *starts;           /* of modules' first values, or NULL */
    tensor_pool *pool, *gradients; /* apart, so that the optimizer finds each kind side by side */
    bool trainable;
    const adapter_trainee *trainee; /* of a new one */
    adapter_stepwise stepwise;
    uint64_t seed;           /* of that */
    adapter_module *modules; /* by flat name */
    int module_count;
    const module_table *table;
    struct adapter_word *words; /* textual inversions (lora/words.h) */
    int word_count;
} adapter;

/* What a file held and what became of it. */
typedef struct adapter_report {
    int applied, total; /* modules */
    char **unapplied;   /* names, as in the file, of modules and tensors that had no effect */
    int unapplied_count;
} adapter_report;

void adapter_report_free(adapter_report *report);
/* "FILE: 252 of 264 modules applied; these 12 not: a, b, ..."; empty text when everything was applied. Names at most `most` of them. */
void adapter_report_text(const adapter_report *report, const char *path, int most, char *out, size_t size);

/* Reads an adapter file, a diffusers or a PEFT folder, for a model with these modules (the table must outlive the adapter). Accepts the
   spellings of formats.md 2 and 6. trainable: its tensors are parameters with gradients. Refused: kinds other than those of the kind
   table that can be applied, shapes that do not fit, NaN and infinity, files for other architectures, files that match nothing.
   report may be NULL. */
adapter *adapter_load(const char *path, const module_table *table, device *d, bool trainable, adapter_report *report, error *err);

/* By number; NULL behind the last. */
const adapter_trainee *adapter_trainee_at(int index);
const adapter_trainee *adapter_trainee_find(const char *name);

/* By number: what --targets can be besides an expression; NULL behind the last. */
const char *adapter_targets_at(int index);

/* "REGEX=NUMBER", for the modules whose names fit; what comes last counts. */
typedef struct adapter_rules {
    const char *const *item;
    int count;
} adapter_rules;

typedef enum adapter_init { ADAPTER_INIT_DEFAULT, ADAPTER_INIT_NORMAL, ADAPTER_INIT_PISSA, ADAPTER_INIT_COUNT } adapter_init;

/* "kaiming", "normal", "pissa"; NULL behind the last. */
const char *adapter_init_at(int index);

typedef struct adapter_options {
    const char *kind;    /* of adapter_trainee; NULL: "lora" */
    const char *targets; /* one of adapter_targets_at, a POSIX extended regular expression on module names, or NULL: the kind's default */
    int rank;
    double alpha;
    bool dora, tucker;                /* lora, locon, loha, lokr: DoRA around it; Tucker factors of 3x3 convolutions */
    int factor;                       /* lokr: of the dimensions; 0 or -1: as even as possible */
    bool decompose_both, full_matrix; /* lokr: W1 in factors too; W2 never */
    double constraint;                /* oft, boft: of the norm, per output; 0: none */
    bool rescaled;                    /* oft, boft: outputs are scaled too */
    int conv_rank;                    /* of 3x3 convolutions; 0: as rank */
    double conv_alpha;                /* 0: as alpha */
    bool conv_optional;               /* conv_rank and conv_alpha may find no convolution */
    bool alpha_is_rank;               /* alpha was not asked for: modules of another rank take that */
    bool rank_stabilised;             /* lora, locon, loha, lokr: scaled by alpha / sqrt(rank) */
    bool trained_scalar;              /* lora, locon, loha, lokr, glora: the change times a trained number that begins at 0 */
    adapter_init init;                /* of lora, locon: how A begins. pissa: adapter_start_set is still to be called */
    /* Learning rates of LoRA's second factor (LoRA+), as parts of the usual one; 0: the same. By checkpoint_part. */
    double up_ratio[CHECKPOINT_PARTS];
    /* sd-scripts' settings by block (lora/settings.h), as texts; NULL: none. */
    const char *block_dims, *block_alphas, *conv_block_dims, *conv_block_alphas;
    const char *down_lr_weight, *mid_lr_weight, *up_lr_weight;
    double block_lr_zero_threshold;
    adapter_rules module_rank, module_alpha, module_lr; /* a rank or a factor of 0: no adapter there */
    adapter_stepwise stepwise;
    bool train_norm; /* of other kinds than norm: the U-Net's norms too (LyCORIS' train_norm) */
    bool train_text_encoder;
    uint64_t seed;
} adapter_options;

/* A new adapter for training: every module of the targets that the kind can change. It changes nothing yet. */
adapter *adapter_create(const adapter_options *options, const module_table *table, device *d, error *err);
void adapter_free(adapter *a);

/* The tensors in their stable order: modules by flat name, tensors in the kind's order. */
int adapter_tensor_count(const adapter *a);
/* index: 0 .. adapter_tensor_count - 1. module: NULL, or gets the module it belongs to (module->info->part is its learning-rate group). */
const adapter_tensor *adapter_tensor_at(const adapter *a, int index, const adapter_module **module);
/* NULL: there is none of that name. */
const adapter_tensor *adapter_tensor_find(const adapter *a, const char *name);
int64_t adapter_tensor_elements(const adapter_tensor *t);
int64_t adapter_parameters(const adapter *a);

/* Between the file's layout and the engine's: values, gradients and optimizer moments alike. */
void adapter_tensor_to_file(const adapter_tensor *t, const float *engine, float *file);
void adapter_tensor_from_file(const adapter_tensor *t, const float *file, float *engine);

/* The module changed under that path, or NULL. */
const adapter_module *adapter_find_module(const adapter *a, checkpoint_part part, const char *name);

/* For kinds: puts tensor number `index` of the module onto the device. name: the file's, copied. dims: [rank], the file's.
   file_values: in the file's layout; NULL: zeros. */
bool adapter_put_tensor(adapter *a, adapter_module *m, int index, const char *name, int rank, const int64_t *dims, adapter_layout layout,
                        const float *file_values, error *err);

#endif
