/* BOFT (Liu et al. 2024; LyCORIS; formats.md 3.8): several stages of block-diagonal orthogonal matrices, each over blocks that a butterfly
   puts together; W' = rescale * (R_k ... R_1 W). As in lycoris/oft.c the layer's output is turned instead of the weight. */
#include "lora/parts.h"
#include "lycoris/kinds.h"

enum { BLOCKS, RESCALE };

static const char *const PARTS[] = {"oft_blocks", "rescale", "alpha", NULL};

static bool boft_recognises(const adapter_group *g) {
    const adapter_part *blocks = adapter_group_part(g, "oft_blocks");
    return blocks && blocks->tensor->rank == 4;
}

static bool boft_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    (void)file;
    const adapter_part *blocks = adapter_group_part(g, "oft_blocks"), *rescale = adapter_group_part(g, "rescale");
    bool present;
    const safetensors_tensor *t = blocks->tensor;
    int64_t size = t->dims[3], out = m->info->out;
    if (t->rank != 4 || t->dims[2] != size || size < 2 || size % 2 || t->dims[0] < 1 || t->dims[1] * size != out || t->dims[0] > 30 ||
        out % (size << (t->dims[0] - 1)))
        return part_shape_error(m, t, err);
    if (rescale && (int64_t)rescale->tensor->elements != out) return part_shape_error(m, rescale->tensor, err);
    m->alpha = 0;
    m->scale = 1;
    m->rank = size;
    return adapter_group_scalar(g, "alpha", &m->alpha, &present, err) && part_load(a, m, BLOCKS, blocks, ADAPTER_MATRIX, err) &&
           (!rescale || part_load(a, m, RESCALE, rescale, ADAPTER_VECTOR, err));
}

static tensor *boft_apply(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add,
                          float multiplier) {
    tensor *r = op_cayley(c->tape, part_value(m, BLOCKS), (float)(m->alpha * (double)m->info->out));
    tensor *y = adapter_chain_product(c, level, x, &(layer_addend){0});
    if (!r) return NULL;
    return adapter_chain_replace(c, y, op_rotate(c->tape, y, r, r->dim[2] / 2, true), part_value(m, RESCALE), add, multiplier);
}

/* The largest even block size up to the rank of which out holds a power of two; stages: the set bits of their number less one, and one
 * more. */
static bool boft_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    int64_t out = m->info->out, size = 0, count = 1, stages = 1;
    for (; count < out && out % (2 * count) == 0 && !size; count *= 2)
        if (out / count <= m->rank && out / count % 2 == 0) size = out / count;
    if (!size)
        return error_set(err,
                         "module %s: BOFT needs an even block of at most --rank %lld of which %lld is a power of two; use a larger rank",
                         m->info->flat, (long long)m->rank, (long long)out);
    count = out / size;
    for (int64_t bits = count - 1; bits; bits &= bits - 1) stages++;
    int64_t blocks[] = {stages, count, size, size}, rescale[] = {out, 1, 1, 1};
    m->alpha = o->constraint;
    m->scale = 1;
    return part_new(a, m, BLOCKS, 4, blocks, ADAPTER_MATRIX, PART_ZEROS, o->seed, err) &&
           (!o->rescaled || part_new(a, m, RESCALE, m->info->convolution ? 4 : 2, rescale, ADAPTER_VECTOR, PART_ONES, o->seed, err));
}

const adapter_kind adapter_kind_boft = {
    .name = "boft",
    .title = "BOFT",
    .recognises = boft_recognises,
    .parts = PARTS,
    .scalar = "alpha",
    .load = boft_load,
    .apply = boft_apply,
    .init = boft_init,
};
