/* What one module of an adapter changes at strength 1, as numbers on the host: the weight's change whatever the kind, or the two factors
   of one that is a LoRA. */
#ifndef VULORA_LORA_CHANGE_H
#define VULORA_LORA_CHANGE_H

#include "lora/kind.h"

typedef struct change {
    int64_t rows, columns; /* out and in * kernel^2; of a norm channels and 1 */
    float *weight;         /* [rows, columns] in files' order, [out, in, kh, kw]; of a norm what is added to gamma; NULL: nothing */
    float *bias;           /* [rows]; of a norm what is added to beta; NULL: nothing */
} change;

/* Whether the change depends on the model's weight there ((IA)^3, GLoRA, OFT, BOFT, DoRA around anything). */
bool change_needs_model(const adapter_module *m);

/* a is on a CPU device of fp32. Where change_needs_model, m->info->weight must be there, and `model` (else NULL) for the biases that PEFT's
   (IA)^3 scales. The caller names file and module in messages. */
bool change_compute(const adapter *a, const adapter_module *m, const checkpoint *model, change *out, error *err);
void change_free(change *c);
/* Adds multiplier times what the module makes of this weight: [out, in, kh, kw], as the adapters below have left it. */
bool change_add(const adapter *a, const adapter_module *m, float multiplier, float *weight, error *err);

/* up down, scaled by `scale`, is the weight's change. */
typedef struct factors {
    int64_t rows, rank, columns;
    double scale;
    float *up;   /* [rows, rank] */
    float *down; /* [rank, columns], columns in files' order (in, kh, kw) */
} factors;

/* A LoRA without DoRA and without a residual; Tucker's three factors become two. And, with a model, GLoRA on a matrix: W a_up a_down + b_up
 * b_down. */
bool change_has_factors(const adapter_module *m);
bool change_factors(const adapter *a, const adapter_module *m, factors *out, error *err);
void factors_free(factors *f);

/* A tensor of a module in the file's layout, freed by the caller. */
float *change_tensor(const adapter *a, const adapter_tensor *t, error *err);
/* By the part's name. *present is false, and NULL returned, when it has none. */
float *change_part(const adapter *a, const adapter_module *m, const char *part, bool *present, error *err);

#endif
