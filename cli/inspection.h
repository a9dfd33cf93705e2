/* What an adapter file is, found out from its tensors: kinds, ranks, norms, problems, and which programs load it with all its effect. */
#ifndef VULORA_CLI_INSPECTION_H
#define VULORA_CLI_INSPECTION_H

#include "lora/file.h"
#include "lora/kind.h"

enum { INSPECTION_COUNTS = 64, INSPECTION_BLOCKS = 64 };

/* Programs that load adapter files (formats.md 8). */
typedef enum loader { LOADER_WEBUI, LOADER_COMFYUI, LOADER_DIFFUSERS, LOADER_SDCPP, LOADER_COUNT } loader;
const char *loader_name(loader program); /* "webui", "comfyui", "diffusers", "sd.cpp" */

/* A value and how many modules have it. */
typedef struct inspection_count {
    double value;
    int modules;
} inspection_count;

typedef struct inspection_block {
    char name[96]; /* "down_blocks_0_attentions_1", "text layer 3" */
    int modules;
    double squares; /* sum of the squared Frobenius norms of the weight changes at strength 1 */
} inspection_block;

typedef struct inspection {
    adapter_file file;
    uint64_t bytes;
    char kinds[64]; /* "lora", "full+lora"; "unknown" */
    bool dora;
    int modules, unet_modules, text_modules;
    inspection_count ranks[INSPECTION_COUNTS], alphas[INSPECTION_COUNTS];
    int rank_count, alpha_count;
    dtype types[DTYPE_COUNT]; /* of tensors, in order of appearance */
    int type_count;
    inspection_block blocks[INSPECTION_BLOCKS];
    int block_count;
    bool loads_in[LOADER_COUNT];
    char data_hash[65]; /* SHA-256 of the data section, the adapter's hash for webui; of a file only */
    char file_hash[65]; /* SHA-256 of the file */
    char **problems;
    int problem_count;
} inspection;

/* False: not an adapter that can be read; the error says what it is. */
bool inspection_open(inspection *i, const char *path, error *err);
void inspection_close(inspection *i);

void inspection_problem(inspection *i, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Rank of a module by its kind's tensors; 0: the kind has none. */
int64_t inspection_rank(const adapter_kind *kind, const adapter_group *g);
bool inspection_alpha(const adapter_group *g, double *alpha);

/* Why the program does not load this module with all its effect; NULL: it does. kind NULL: an unknown set of parts. */
const char *inspection_obstacle(loader program, const adapter_kind *kind, const adapter_group *g);
/* Whether SD 1.x has a module of that flat name. */
bool inspection_module_known(const char *flat);

#endif
