/* GLoRA (Chavan et al. 2023; LyCORIS; formats.md 3.7): W + scale * (W A + B), both of low rank. A changes the layer's input, B is a LoRA:
   W (x + scale * a1 a2 x) + scale * b1 b2 x.

   Files have two namings. Current LyCORIS: a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in]. Before, and in webui: 1 and 2 are swapped. */
#include "lora/parts.h"
#include "lycoris/kinds.h"

/* In the engine's terms, whatever the file calls them. The file's own names follow from `parts`, which are those of the older naming. */
enum { A_DOWN, A_UP, B_DOWN, B_UP };

static const char *const PARTS[] = {"a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "alpha", NULL};

static bool glora_recognises(const adapter_group *g) {
    for (int i = 0; i < 4; i++)
        if (adapter_group_part(g, PARTS[i])) return true;
    return false;
}

static bool glora_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    const module_info *info = m->info;
    const adapter_part *parts[4];
    for (int i = 0; i < 4; i++) {
        parts[i] = adapter_group_part(g, PARTS[i]);
        if (!parts[i]) return error_set(err, "has no %s", PARTS[i]);
    }
    if (adapter_group_part(g, "bm.weight")) return error_set(err, "has bm.weight, which no trainer writes");
    bool current = parts[0]->tensor->dims[0] == info->in; /* the four shapes alone do not tell on square modules */
    const adapter_part *a_down = parts[current ? 1 : 0], *a_up = parts[current ? 0 : 1];
    const adapter_part *b_down = parts[current ? 3 : 2], *b_up = parts[current ? 2 : 3];
    int64_t ra = a_down->tensor->dims[0], rb = b_down->tensor->dims[0];
    if (!part_is_matrix(a_down->tensor, ra, info->in)) return part_shape_error(m, a_down->tensor, err);
    if (!part_is_matrix(a_up->tensor, info->in, ra)) return part_shape_error(m, a_up->tensor, err);
    if (!part_is_matrix(b_up->tensor, info->out, rb)) return part_shape_error(m, b_up->tensor, err);
    bool kernel = info->kernel > 1;
    if (!(kernel ? part_is_kernel(b_down->tensor, rb, info->in, info->kernel) : part_is_matrix(b_down->tensor, rb, info->in)))
        return part_shape_error(m, b_down->tensor, err);
    return part_load_scale(m, file, g, ra, err) && part_load(a, m, A_DOWN, a_down, ADAPTER_MATRIX, err) &&
           part_load(a, m, A_UP, a_up, ADAPTER_MATRIX, err) &&
           part_load(a, m, B_DOWN, b_down, kernel ? ADAPTER_TAPS : ADAPTER_MATRIX, err) && part_load(a, m, B_UP, b_up, ADAPTER_MATRIX, err);
}

static tensor *glora_apply(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add,
                           float multiplier) {
    float scale = multiplier * (float)m->scale;
    tensor *moved =
        op_linear(c->tape, op_linear(c->tape, x, part_value(m, A_DOWN), NULL, NULL, 1), part_factor(m, c->tape, A_UP), NULL, x, scale);
    tensor *y = adapter_chain_product(c, level, moved, add);
    return op_linear(c->tape, adapter_chain_factor(c, x, part_value(m, B_DOWN)), part_factor(m, c->tape, B_UP), NULL, y, scale);
}

/* As LyCORIS: what comes second is zeros, unless a scalar begins at 0 instead. webui takes no alpha: it is the rank, so the scale is 1. */
static bool glora_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    const module_info *info = m->info;
    int64_t r = m->rank, down[] = {r, info->in}, up[] = {info->in, r}, out[] = {info->out, r};
    part_fill second = o->trained_scalar ? PART_KAIMING : PART_ZEROS;
    m->alpha = (double)r;
    m->scale = 1;
    return part_new(a, m, A_DOWN, 2, down, ADAPTER_MATRIX, PART_KAIMING, o->seed, err) &&
           part_new(a, m, A_UP, 2, up, ADAPTER_MATRIX, second, o->seed, err) &&
           part_new(a, m, B_DOWN, 2, down, ADAPTER_MATRIX, PART_KAIMING, o->seed, err) &&
           part_new(a, m, B_UP, 2, out, ADAPTER_MATRIX, second, o->seed, err);
}

const adapter_kind adapter_kind_glora = {
    .name = "glora",
    .title = "GLoRA",
    .recognises = glora_recognises,
    .parts = PARTS,
    .scalar = "alpha",
    .scaled = 1u << A_UP | 1u << B_UP,
    .linear_only = true,
    .load = glora_load,
    .apply = glora_apply,
    .init = glora_init,
};
