/* What an adapter file is, found out from its tensors: kinds, ranks, norms, problems, and which programs load it with all its effect. */
#ifndef VULORA_CLI_INSPECTION_H
#define VULORA_CLI_INSPECTION_H

#include "lora/file.h"
#include "lora/kind.h"

enum { INSPECTION_COUNTS = 64, INSPECTION_BLOCKS = 64, INSPECTION_CLASSES = 13 };

/* Programs that load adapter files (formats.md 8). */
typedef enum loader { LOADER_WEBUI, LOADER_COMFYUI, LOADER_DIFFUSERS, LOADER_SDCPP, LOADER_COUNT } loader;
const char *loader_name(loader program);  /* "webui", "comfyui", "diffusers", "sd.cpp" */
const char *loader_title(loader program); /* "ComfyUI" */

/* A value and how many modules have it. */
typedef struct inspection_count {
    double value;
    int modules;
} inspection_count;

typedef struct inspection_list {
    char **item;
    int count;
} inspection_list;

/* How much a module changes at strength 1. */
typedef struct inspection_norm {
    double squares;    /* of what is added to the weight: squared Frobenius norm; below 0: nothing is, or it cannot be told */
    double relative;   /* of what multiplies the weight: (change / weight)^2 to be expected of any weight; below 0: nothing does */
    bool needs_base;   /* the exact norm needs the weight of the base model: DoRA, and all that multiplies it */
    bool dead;         /* exactly no change */
    const char *fault; /* why it could not be told: parts that do not fit together; or NULL */
} inspection_norm;

typedef struct inspection_block {
    char name[96];   /* "down_blocks_0_attentions_1", "text layer 3" */
    char merging[8]; /* what merging programs call it: "IN01", "M00", "OUT11", "BASE" */
    int place;       /* in the network */
    int modules;
    double squares, relative; /* sums of its modules' */
    int added, multiplied;    /* modules that are in the one sum and in the other */
} inspection_block;

/* Modules of one model, by what they are (inspection_class_title). */
typedef struct inspection_targets {
    int modules;
    int classes[INSPECTION_CLASSES];
    char set[48]; /* "attn-mlp", "full"; empty: none of the known sets */
    int set_size; /* modules that SD 1.5 has of it: fewer in the file is a part of the set */
} inspection_targets;

/* One of the two hashes that trainers write. */
typedef struct inspection_hash {
    const char *stated; /* in the metadata; NULL: not there */
    char computed[65];
    enum { HASH_ABSENT, HASH_TRUE, HASH_FALSE, HASH_UNKNOWN } verdict;
} inspection_hash;

typedef struct inspection_embedding {
    char *token;
    int64_t vectors, width;
} inspection_embedding;

typedef struct inspection {
    adapter_file file;
    uint64_t bytes;
    int64_t parameters; /* elements of the tensors that were trained */
    char kinds[64];     /* "lora", "full+lora"; "unknown" */
    bool dora, dora_on_output, tucker, rank_stabilised;
    int modules, unet_modules, text_modules;
    inspection_targets unet, text;
    inspection_count ranks[INSPECTION_COUNTS], alphas[INSPECTION_COUNTS];
    int rank_count, alpha_count;
    dtype types[DTYPE_COUNT]; /* of tensors, in order of appearance */
    int type_count;
    inspection_block blocks[INSPECTION_BLOCKS];
    int block_count;
    int needing_base; /* modules whose exact norm needs the base model */
    int untold;       /* modules that are in no block's sums */
    bool measured;    /* against a model: norms are exact, and shares are those of its weights */
    bool loads_in[LOADER_COUNT];
    const char *obstacles[LOADER_COUNT]; /* the first thing that keeps it from there, or NULL */
    char data_hash[65];                  /* SHA-256 of the data section, which webui takes when the metadata says none; of a file only */
    char file_hash[65];                  /* SHA-256 of the file */
    inspection_hash model_hash, legacy_hash;
    inspection_embedding *embeddings;
    int embedding_count;
    inspection_list dead;      /* modules that change exactly nothing */
    inspection_list nonfinite; /* tensors with NaN or infinity */
    inspection_list problems, notes;
} inspection;

/* False: not an adapter that can be read; the error says what it is. */
bool inspection_open(inspection *i, const char *path, error *err);
void inspection_close(inspection *i);

/* What files are called in prompts: by their own name, and by ss_output_name (NULL: it is not said). */
typedef struct inspection_name {
    const char *path;
    char *stem, *stated;
} inspection_name;

inspection_name *inspection_names_read(const char *const *paths, int count);
void inspection_names_free(inspection_name *names, int count);
/* A name that another file has too is a problem (formats.md 4). own: number of the inspected file among `names`. */
void inspection_find_clashes(inspection *i, int own, const inspection_name *names, int count);

void inspection_problem(inspection *i, const char *format, ...) __attribute__((format(printf, 2, 3)));
void inspection_note(inspection *i, const char *format, ...) __attribute__((format(printf, 2, 3)));
void inspection_list_add(inspection_list *list, const char *text);

/* ---- parts of it, each in a file of its own ---- */

/* inspection_rules.c. Rank of a module by its kind's tensors; 0: the kind has none. */
int64_t inspection_rank(const adapter_kind *kind, const adapter_group *g);
bool inspection_alpha(const adapter_group *g, double *alpha);
/* Why the program does not load this module with all its effect; NULL: it does. kind NULL: an unknown set of parts. */
const char *inspection_obstacle(loader program, const adapter_kind *kind, const adapter_group *g);

/* inspection_norms.c */
inspection_norm inspection_module_norm(const adapter_file *file, const adapter_kind *kind, const adapter_group *g);

/* inspection_targets.c. Whether SD 1.x has a module of that flat name. */
bool inspection_module_known(const char *flat);
const char *inspection_class_title(int index);
void inspection_count_target(inspection *i, const adapter_group *g);
/* Names the sets once all modules are counted. */
void inspection_name_targets(inspection *i);
/* The block of that module, new if need be; NULL: there are too many. */
inspection_block *inspection_block_of(inspection *i, const adapter_group *g);
void inspection_sort_blocks(inspection *i);

/* inspection_metadata.c. */
void inspection_check_metadata(inspection *i);
void inspection_check_hashes(inspection *i);
/* Words in the metadata's counts, the most frequent first: "dog (12), park (9)"; empty: none. */
void inspection_tags(const safetensors *st, char *out, size_t size);
/* The base model as far as the file says it. */
void inspection_base(const inspection *i, char *out, size_t size);

/* inspection_model.c. Norms against a model instead of what the file alone tells; what keeps the adapter from that model is a problem. */
struct source_base;
void inspection_measure(inspection *i, const struct source_base *base);

/* inspection_text.c. On stdout; bars: as pictures instead of plain figures. */
void inspection_print(const inspection *i, bool bars, int columns);

#endif
