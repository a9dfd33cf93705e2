/* The kinds of adapters. One row of the table says how a kind is recognised in a file, read, applied and made new; file readers,
   inspection and help walk the table. A kind that is only recognised (load NULL) is refused by its name. */
#ifndef VULORA_LORA_KIND_H
#define VULORA_LORA_KIND_H

#include "lora/adapter.h"
#include "lora/file.h"
#include "lora/layer.h"
#include "ops/ops.h"

/* Where a layer calls the adapter stack. */
typedef struct adapter_site {
    checkpoint_part part;
    const char *name;       /* diffusers' path */
    const conv_shape *conv; /* NULL: a linear layer or a 1x1 convolution */
    tensor *weight;         /* frozen: [out, in] or [taps, out, in] */
} adapter_site;

/* What a layer adds to its product; each may be NULL. */
typedef struct layer_addend {
    tensor *bias, *residual, *shift;
} layer_addend;

/* A layer under a stack of adapters, while a tape is recorded. Level k is the layer as the first k adapters of the stack leave it. */
typedef struct adapter_chain {
    const adapter_stack *stack;
    tape *tape;
    const adapter_site *site;
} adapter_chain;

/* W x + addend, with the weight of that level. */
tensor *adapter_chain_product(const adapter_chain *c, int level, tensor *x, const layer_addend *add);
/* Do adapters below that level change the layer? */
bool adapter_chain_changes(const adapter_chain *c, int level);
/* A layer's own convolution with a factor [taps, out, in], or the linear layer [out, in]: no bias. */
tensor *adapter_chain_factor(const adapter_chain *c, tensor *x, tensor *factor);
/* y + multiplier * (rescale * changed - y) + addend: for kinds that work on a layer's output y. rescale: [out] or NULL. */
tensor *adapter_chain_replace(const adapter_chain *c, tensor *y, tensor *changed, tensor *rescale, const layer_addend *add,
                              float multiplier);
/* The same for a norm's gamma and beta (either may be replaced by a computed one). */
void adapter_chain_norm(const adapter_stack *s, tape *t, checkpoint_part part, const char *name, tensor **gamma, tensor **beta);

/* One row of the table. m is always a module of the kind. A kind changes a weight W to W + multiplier * change, linear in the strength
   (formats.md 3.17); it says how in one of two ways:

   - branch (and difference): the change D does not depend on W, and D x is the cheapest way to use it. DoRA wraps such kinds.
   - apply: anything else; asks for products with the weight of the level below. */
struct adapter_kind {
    const char *name;  /* of `inspect`: "lora" */
    const char *title; /* "LoRA" */
    /* Does this set of parts belong to the kind? Rows are asked in the table's order. */
    bool (*recognises)(const adapter_group *g);
    const char *const *parts; /* the parts it may have, its tensors first, in their order; NULL behind the last */
    const char *scalar;       /* the part that holds m->alpha, or NULL */
    unsigned scaled;          /* bits of the tensors that a trained scalar multiplies; files hold the products. 0: it cannot have one */
    bool foreign;             /* as other programs' files say it: is applied, but neither trained nor written here */
    bool linear_only;         /* trained on linear layers only: webui applies it to no others */
    /* Checks shapes against m->info, fills m. Messages name what is wrong; the caller puts file and module in front. NULL: recognised and
       refused. */
    bool (*load)(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err);
    /* y + factor * D x; y NULL: factor * D x. */
    tensor *(*branch)(const adapter_module *m, const adapter_chain *c, tensor *x, tensor *y, float factor);
    /* D on the tape, shaped as the weight, fp32. */
    tensor *(*difference)(const adapter_module *m, tape *t);
    /* D = m->scale * left right, fp32 factors [out, r] and [r, in] or [taps, r, in] on the tape. NULL, or false: it is no product of small
       ones. */
    bool (*factors)(const adapter_module *m, tape *t, tensor **left, tensor **right);
    /* ||D / m->scale||^2 on the tape, fp32 [1]. NULL: there is no cheaper way than those. */
    tensor *(*square_norm)(const adapter_module *m, tape *t);
    /* The whole product of the level above `level`: (W + multiplier * change) x + addend. */
    tensor *(*apply)(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add, float multiplier);
    /* Of norms: changes gamma and beta. */
    void (*apply_norm)(const adapter_module *m, tape *t, tensor **gamma, tensor **beta, float multiplier);
    /* Fills a new module (m->info, m->rank and m->alpha are set) for training. NULL: is not trained. */
    bool (*init)(adapter *a, adapter_module *m, const adapter_options *o, error *err);
};

/* All kinds (lycoris/kinds.c); NULL behind the last. */
const adapter_kind *const *adapter_kinds(void);
/* NULL: no kind has this set of parts. */
const adapter_kind *adapter_kind_of(const adapter_group *g);

extern const adapter_kind adapter_kind_lora;

#endif
