/* PiSSA (Meng et al. 2024): a LoRA whose factors begin as the principal singular vectors of the layer's weight, W = U S V^T:
   A0 = sqrt(S / scale) V^T, B0 = U sqrt(S / scale), of the rank. PEFT takes scale B0 A0 out of the weight; here the weight stays, and the
   change is scale (B A - B0 A0). So is the adapter's file, a LoRA of twice the rank, [A; A0] and [B, -B0]: it fits the unchanged model, as
   what PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) writes. */
#ifndef VULORA_LORA_START_H
#define VULORA_LORA_START_H

#include "lora/kind.h"

/* The two factors are the module's tensors 0 (A) and 1 (B). Makes what they will begin with, zeros so far. */
bool adapter_start_new(adapter *a, adapter_module *m, error *err);

/* Singular values [rank], descending, vectors as columns u [out, rank] and rows vt [rank, in * kernel * kernel] of the layer's weight as
   files have it: both factors get their first values. Fewer singular values than the rank: the rest is 0. */
bool adapter_start_set(const adapter *a, const adapter_module *m, int64_t count, const float *u, const float *s, const float *vt,
                       error *err);

/* What factor `index` began with, in the file's layout. write: the factor itself is left alone. */
bool adapter_start_read(const adapter *a, const adapter_module *m, int index, float *file, error *err);
bool adapter_start_write(const adapter *a, const adapter_module *m, int index, const float *file, error *err);

/* A factor [r, ...] or [out, r] as the file has it, with what it began with behind: [2 r, ...], or [out, 2 r] with the second half's sign
   turned. both: room for twice the factor's elements, the first half filled with it; dims: its shape, changed to the new one. */
bool adapter_start_append(const adapter *a, const adapter_module *m, int index, float *both, int64_t *dims, error *err);

#endif
