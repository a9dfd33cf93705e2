/* The kinds of adapters. One row of the table says how a kind is recognised in a file, read, applied and made new; file readers,
   inspection and help walk the table. A kind that is only recognised (load NULL) is refused by its name. */
#ifndef VULORA_LORA_KIND_H
#define VULORA_LORA_KIND_H

#include "lora/adapter.h"
#include "lora/file.h"
#include "ops/ops.h"

/* Where a layer calls the adapter stack. */
typedef struct adapter_site {
    checkpoint_part part;
    const char *name;       /* diffusers' path */
    const conv_shape *conv; /* NULL: a linear layer or a 1x1 convolution */
    tensor *weight;         /* frozen: [out, in] or [taps, out, in] */
} adapter_site;

struct adapter_kind {
    const char *name;  /* of `inspect`: "lora" */
    const char *title; /* "LoRA" */
    /* Does this set of parts belong to the kind? Rows are asked in the table's order. */
    bool (*recognises)(const adapter_group *g);
    const char *const *parts; /* the parts it may have; NULL behind the last */
    /* Checks shapes against m->info, fills m. Messages name what is wrong; the caller puts file and module in front. */
    bool (*load)(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err);
    /* y: the module's output so far. Returns y + multiplier * change(x). */
    tensor *(*apply)(const adapter_module *m, tape *t, const adapter_site *site, tensor *x, tensor *y, float multiplier);
    /* Fills a new module (m->info, m->rank and m->alpha are set) for training. */
    bool (*init)(adapter *a, adapter_module *m, uint64_t seed, error *err);
};

/* NULL behind the last. */
const adapter_kind *const *adapter_kinds(void);
/* NULL: no kind has this set of parts. */
const adapter_kind *adapter_kind_of(const adapter_group *g);

extern const adapter_kind adapter_kind_lora;

#endif
