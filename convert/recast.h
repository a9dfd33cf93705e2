/* One module of an adapter as a module of a draft: as it is, as a LoRA, or as the full difference. */
#ifndef VULORA_CONVERT_RECAST_H
#define VULORA_CONVERT_RECAST_H

#include "convert/draft.h"
#include "convert/source.h"
#include "convert/svd.h"
#include "lora/change.h"

/* How many singular values are kept (features.md 7; sd-scripts' resize_lora). */
typedef enum rank_rule {
    RANK_FIXED,
    RANK_RATIO,      /* those above the largest one / parameter */
    RANK_CUMULATIVE, /* the fraction `parameter` of their sum */
    RANK_FROBENIUS   /* the fraction `parameter` of the Frobenius norm */
} rank_rule;

/* "sv_ratio", "sv_cumulative", "sv_fro". */
bool rank_rule_find(const char *name, rank_rule *out);

typedef struct rank_choice {
    int64_t most, conv_most; /* at most; of 3x3 convolutions; 0: what there is */
    rank_rule rule;
    double parameter;
} rank_choice;

/* Whether any rank is asked for. */
bool rank_wanted(const rank_choice *choice);
/* The most for that module; 0: any. */
int64_t rank_most(const rank_choice *choice, const module_info *info);
/* Whether a LoRA of that rank may stay as it is. */
bool rank_fits(const rank_choice *choice, const module_info *info, int64_t rank);
/* values: the largest `count` singular values, descending; of RANK_CUMULATIVE all of them. norm: Frobenius norm of the whole. */
int64_t rank_choose(const rank_choice *choice, int64_t most, const float *values, int64_t count, double norm);

/* The file's own tensors, shapes and names put into kohya's order. Linear GLoRA gets the older naming with its scale in the factors, which
   webui applies. */
bool recast_same(draft *d, const source *s, int index, error *err);

/* What cutting left out of a module: `error` is relative to `norm`. */
typedef struct recast_loss {
    int64_t rank, before; /* before: 0: it was no LoRA */
    double norm, error;
} recast_loss;

/* The best LoRA of up to the chosen rank. It takes over nothing. type: preferred. Zeros become a LoRA of zeros. */
bool recast_matrix(draft *d, const module_info *info, const float *weight, const rank_choice *choice, dtype type, recast_loss *loss,
                   error *err);
bool recast_factors(draft *d, const module_info *info, const factors *f, const rank_choice *choice, dtype type, recast_loss *loss,
                    error *err);
/* The factors as they are. It takes them over. */
void recast_keep_factors(draft *d, const module_info *info, factors *f, dtype type);

/* `diff` and `diff_b`; of a norm w_norm and b_norm. Takes over the change. */
void recast_full(draft *d, const module_info *info, change *c, dtype type);

/* Of every LoRA in the file the first `rank` ranks, alpha as it was (sd-scripts' extract_lora_from_dylora). */
bool recast_cut(draft_module *m, int64_t rank, error *err);

/* The type that tensors of that group of a file have: new tensors prefer it. */
dtype recast_type(const adapter_group *g);

#endif
