/* What a change has beside its factors (formats.md 3, 3.15): a dense tensor `bias`, shaped as the weight, or LyCORIS' sparse one
   (`bias_indices`, `bias_values`, `bias_size`). It is added to the factors' product before that is scaled. */
#ifndef VULORA_LORA_RESIDUAL_H
#define VULORA_LORA_RESIDUAL_H

#include "lora/kind.h"

/* Can the part be one of a module of that kind? */
bool adapter_residual_part(const adapter_kind *kind, const char *part);
/* Reads the residual, if there is one. */
bool adapter_residual_load(adapter *a, adapter_module *m, const adapter_group *g, error *err);

/* The kind's branch and difference, with the residual. */
tensor *adapter_module_branch(const adapter_module *m, const adapter_chain *c, tensor *x, tensor *y, float factor);
tensor *adapter_module_difference(const adapter_module *m, tape *t);

#endif
