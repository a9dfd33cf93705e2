/* DoRA around any kind that has a difference (Liu et al. 2024; formats.md 3.11): V = W + D, W' = V * magnitude / |V|. */
#ifndef VULORA_LORA_DORA_H
#define VULORA_LORA_DORA_H

#include "lora/kind.h"

/* The module's magnitudes, or NULL: it is no DoRA. */
static inline tensor *adapter_module_magnitude(const adapter_module *m) { return m->tensors[ADAPTER_MAGNITUDE].value; }

/* Reads `dora_scale`, if there is one: [1, in, ...] for the input axis, [out, 1, ...], [out] or [1, out, 1, 1] (PEFT) for the output axis.
 */
bool adapter_dora_load(adapter *a, adapter_module *m, const adapter_group *g, error *err);
/* New magnitudes: the norms of the model's weight along the input axis, which is the one that webui knows. */
bool adapter_dora_init(adapter *a, adapter_module *m, error *err);
/* As adapter_kind.apply. */
tensor *adapter_dora_apply(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add,
                           float multiplier);

/* `difference` with what the adapters below `level` add to the weight. */
tensor *adapter_chain_difference(const adapter_chain *c, int level, tensor *difference);

#endif
