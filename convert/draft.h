/* An adapter on its way into a file: modules with their tensors on the host, under kohya's part names. convert/spell.h writes it. */
#ifndef VULORA_CONVERT_DRAFT_H
#define VULORA_CONVERT_DRAFT_H

#include "lora/kind.h"

typedef struct draft_tensor {
    const char *part; /* kohya's: "lora_down.weight"; static */
    int rank;
    int64_t dims[4];
    size_t elements;
    float *values;
    dtype type;    /* it had in the file it comes from */
    bool computed; /* the values are new: they keep that type only where it holds them exactly */
} draft_tensor;

typedef struct draft_module {
    const module_info *info; /* borrowed */
    const adapter_kind *kind;
    int64_t rank; /* 0: it has none */
    double alpha; /* as kohya's files say it under the kind's `scalar` */
    double scale; /* alpha / rank */
    bool dora_on_output;
    dtype alpha_type;
    draft_tensor tensors[ADAPTER_MODULE_TENSORS];
    int count;
} draft_module;

typedef struct draft {
    draft_module *modules;
    int count;
} draft;

/* Adds an empty module; valid until the next one is added. */
draft_module *draft_add(draft *d, const module_info *info, const adapter_kind *kind);
/* Adds a tensor of a module; takes over `values`. computed as in draft_tensor; then `type` is the preferred one. */
void draft_put(draft_module *m, const char *part, int rank, const int64_t *dims, float *values, dtype type, bool computed);
draft_tensor *draft_find(const draft_module *m, const char *part);
void draft_free(draft *d);

/* A new LoRA module: takes over up [out, rank] and down [rank, in * kernel^2]. */
void draft_put_lora(draft *d, const module_info *info, int64_t rank, double alpha, float *up, float *down, dtype type);

/* The type the tensor is written in. wanted: DTYPE_COUNT for its own; when new values of a module do not fit into that, all of the module
   get fp32, since webui multiplies tensors of a module as they are. */
dtype draft_type(const draft_module *m, const draft_tensor *t, dtype wanted);
/* The same for the scalar. */
dtype draft_alpha_type(const draft_module *m, dtype wanted);

/* F32, F16 and BF16 as they are; what cannot be written becomes F16 (from 8 bits) or F32. */
dtype draft_writable(dtype type);

#endif
