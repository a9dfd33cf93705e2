/* Diagonal OFT (Qiu et al. 2023; LyCORIS and kohya; formats.md 3.8): the weight's rows, block by block, turned by orthogonal matrices
   R = Cayley(blocks); W' = rescale * (R^T W). The layer's output without its bias is turned instead of the weight: the cost is that of a
   few columns, not of the weight. `alpha` is the constraint: the norm of all blocks' generators is at most alpha * out. */
#include "lora/parts.h"
#include "lycoris/kinds.h"

enum { BLOCKS, RESCALE, ROTATION /* older files hold R itself */ };

static const char *const PARTS[] = {"oft_blocks", "rescale", "oft_diag", "alpha", NULL};

static bool oft_recognises(const adapter_group *g) { return adapter_group_part(g, "oft_blocks") || adapter_group_part(g, "oft_diag"); }

static bool oft_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    (void)file;
    const adapter_part *blocks = adapter_group_part(g, "oft_blocks"), *rotation = adapter_group_part(g, "oft_diag");
    const adapter_part *rescale = adapter_group_part(g, "rescale"), *part = blocks ? blocks : rotation;
    bool present;
    const safetensors_tensor *t = part->tensor;
    if (t->rank != 3 || t->dims[1] != t->dims[2] || t->dims[0] * t->dims[1] != m->info->out) return part_shape_error(m, t, err);
    if (rescale && (int64_t)rescale->tensor->elements != m->info->out) return part_shape_error(m, rescale->tensor, err);
    m->alpha = 0;
    m->scale = 1;
    m->rank = t->dims[1];
    return adapter_group_scalar(g, "alpha", &m->alpha, &present, err) &&
           part_load(a, m, blocks ? BLOCKS : ROTATION, part, ADAPTER_MATRIX, err) &&
           (!rescale || part_load(a, m, RESCALE, rescale, ADAPTER_VECTOR, err));
}

static tensor *oft_apply(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add, float multiplier) {
    tensor *r = part_value(m, ROTATION) ? part_value(m, ROTATION)
                                        : op_cayley(c->tape, part_value(m, BLOCKS), (float)(m->alpha * (double)m->info->out));
    tensor *y = adapter_chain_product(c, level, x, &(layer_addend){0});
    return adapter_chain_replace(c, y, op_rotate(c->tape, y, r, 0, false), part_value(m, RESCALE), add, multiplier);
}

/* Blocks of the smaller factor of out. */
static bool oft_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    int64_t low, high, out = m->info->out;
    adapter_factorize(out, m->rank, &low, &high);
    int64_t blocks[] = {high, low, low}, rescale[] = {out, 1, 1, 1};
    m->alpha = o->constraint;
    m->scale = 1;
    return part_new(a, m, BLOCKS, 3, blocks, ADAPTER_MATRIX, PART_ZEROS, o->seed, err) &&
           (!o->rescaled || part_new(a, m, RESCALE, m->info->convolution ? 4 : 2, rescale, ADAPTER_VECTOR, PART_ONES, o->seed, err));
}

const adapter_kind adapter_kind_oft = {
    .name = "oft",
    .title = "OFT",
    .recognises = oft_recognises,
    .parts = PARTS,
    .scalar = "alpha",
    .load = oft_load,
    .apply = oft_apply,
    .init = oft_init,
};
