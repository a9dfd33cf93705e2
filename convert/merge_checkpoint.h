/* Adapters merged into a model: what a stack of them does, put into the weights for good. */
#ifndef VULORA_CONVERT_MERGE_CHECKPOINT_H
#define VULORA_CONVERT_MERGE_CHECKPOINT_H

#include "lora/stack.h"

typedef struct merge_layer {
    const adapter *adapter; /* of the model's modules, on a CPU device of fp32 */
    adapter_spec spec;      /* its strengths; the path is not read */
} merge_layer;

typedef struct merge_options {
    void (*progress)(void *user, int64_t done, int64_t total); /* in tensors that change; may be NULL */
    void *user;
} merge_options;

/* Writes the model, a single file, to `path`: its layout, names, types, metadata and tensors as they are, all but those that the adapters
   change. Layers are applied in order, each to what those before left (formats.md 3.17), in float32; the sum is rounded to the tensor's
   type once. Refused: folders, and values that the tensor's type cannot hold. changed: the number of tensors. table: the model's. */
bool merge_into_checkpoint(const checkpoint *model, const module_table *table, const merge_layer *layers, int count, const char *path,
                           const merge_options *o, int *changed, error *err);

#endif
