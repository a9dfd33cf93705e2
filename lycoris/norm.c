/* Norms (formats.md 3.10): gamma + multiplier * w_norm, beta + multiplier * b_norm. */
#include "lora/parts.h"
#include "lycoris/kinds.h"

enum { GAMMA, BETA };

static const char *const PARTS[] = {"w_norm", "b_norm", NULL};

static bool norm_recognises(const adapter_group *g) { return adapter_group_part(g, PARTS[GAMMA]) || adapter_group_part(g, PARTS[BETA]); }

static bool norm_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    (void)file;
    m->scale = 1;
    for (int i = GAMMA; i <= BETA; i++) {
        const adapter_part *part = adapter_group_part(g, PARTS[i]);
        if (part && (int64_t)part->tensor->elements != m->info->out) return part_shape_error(m, part->tensor, err);
        if (part && !part_load(a, m, i, part, ADAPTER_VECTOR, err)) return false;
    }
    return true;
}

static void norm_apply(const adapter_module *m, tape *t, tensor **gamma, tensor **beta, float multiplier) {
    column_scale s = {.a = 1, .c = multiplier};
    if ((s.residual = part_value(m, GAMMA))) *gamma = op_scale_columns(t, *gamma, s);
    if ((s.residual = part_value(m, BETA))) *beta = op_scale_columns(t, *beta, s);
}

static bool norm_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    m->scale = 1, m->rank = 0, m->alpha = 0;
    return part_new(a, m, GAMMA, 1, &m->info->out, ADAPTER_VECTOR, PART_ZEROS, o->seed, err) &&
           part_new(a, m, BETA, 1, &m->info->out, ADAPTER_VECTOR, PART_ZEROS, o->seed, err);
}

const adapter_kind adapter_kind_norm = {
    .name = "norm",
    .title = "norm",
    .recognises = norm_recognises,
    .parts = PARTS,
    .load = norm_load,
    .apply_norm = norm_apply,
    .init = norm_init,
};
