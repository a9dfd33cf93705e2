/* (IA)^3 (Liu et al. 2022; formats.md 3.5): every output channel, or every input channel, of the weight times 1 + w. Stored as the delta
   from 1; PEFT's ia3_l is the multiplier itself. LyCORIS does not scale a bias; PEFT does, where it scales outputs. */
#include "base/memory.h"
#include "lora/parts.h"
#include "lora/peft.h"
#include "lycoris/kinds.h"

#include <stdlib.h>
#include <string.h>

enum { WEIGHT };

static bool ia3_recognises(const adapter_group *g) { return adapter_group_part(g, "weight") || adapter_group_part(g, "ia3_l"); }

/* ia3_l is [out, 1] or [1, in], of convolutions [1, out, 1, 1] and [1, in, 1, 1], where the configuration tells. */
static bool peft_on_input(const adapter_module *m, const adapter_file *file, const adapter_group *g, const safetensors_tensor *t) {
    const struct json_t *config = g->path ? file->config[g->part] : NULL;
    if (t->rank == 2) return t->dims[0] == 1 && t->dims[1] == m->info->in;
    if (config) return peft_lists(config, "feedforward_modules", g->path);
    return (int64_t)t->elements == m->info->in && m->info->in != m->info->out;
}

static const adapter_kind WITH_BIAS;

static bool ia3_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    const adapter_part *weight = adapter_group_part(g, "weight"), *peft = adapter_group_part(g, "ia3_l");
    const safetensors_tensor *t = (weight ? weight : peft)->tensor;
    bool present;
    m->alpha = weight ? 0 : peft_on_input(m, file, g, t);
    if (weight && !adapter_group_scalar(g, "on_input", &m->alpha, &present, err)) return false;
    if (weight && !present) return error_set(err, "has %s but no on_input", t->name);
    m->scale = 1;
    if ((int64_t)t->elements != (m->alpha != 0 ? m->info->in : m->info->out)) return part_shape_error(m, t, err);
    float *values = adapter_part_read(weight ? weight : peft, err);
    if (!values) return false;
    for (size_t i = 0; peft && i < t->elements; i++) values[i] -= 1;
    bool ok = adapter_put_tensor(a, m, WEIGHT, t->name, t->rank, t->dims, ADAPTER_VECTOR, values, err);
    free(values);
    if (peft && m->alpha == 0 && m->info->bias) m->kind = &WITH_BIAS;
    return ok;
}

/* Of outputs, their bias among them. */
static tensor *with_bias_apply(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add,
                               float multiplier) {
    column_scale s = {.w = part_value(m, WEIGHT), .a = 1, .b = multiplier, .residual = add->residual, .c = 1, .shift = add->shift};
    return op_scale_columns(c->tape, adapter_chain_product(c, level, x, &(layer_addend){.bias = add->bias}), s);
}

static tensor *ia3_apply(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add, float multiplier) {
    column_scale s = {.w = part_value(m, WEIGHT), .a = 1, .b = multiplier};
    if (m->alpha != 0) return adapter_chain_product(c, level, op_scale_columns(c->tape, x, s), add);
    s.residual = add->residual, s.c = 1, s.bias = add->bias, s.shift = add->shift;
    return op_scale_columns(c->tape, adapter_chain_product(c, level, x, &(layer_addend){0}), s);
}

/* Inputs of the feed-forward layers' second half, outputs of keys and values, as the paper has them. */
static bool ia3_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    const module_info *info = m->info;
    size_t n = strlen(info->name);
    m->alpha = (n > 9 && strcmp(info->name + n - 9, ".ff.net.2") == 0) || (n > 8 && strcmp(info->name + n - 8, ".mlp.fc2") == 0);
    m->scale = 1;
    int64_t count = m->alpha != 0 ? info->in : info->out, dims[] = {1, count, 1, 1};
    return part_new(a, m, WEIGHT, info->convolution ? 4 : 1, info->convolution ? dims : &count, ADAPTER_VECTOR, PART_ZEROS, o->seed, err);
}

const adapter_kind adapter_kind_ia3 = {
    .name = "ia3",
    .title = "(IA)^3",
    .recognises = ia3_recognises,
    .parts = (const char *const[]){"weight", "on_input", "ia3_l", NULL},
    .scalar = "on_input",
    .load = ia3_load,
    .apply = ia3_apply,
    .init = ia3_init,
};

/* What ia3_load makes of a module of PEFT's that scales a bias too, which LyCORIS' files cannot say. */
static const adapter_kind WITH_BIAS = {
    .name = "ia3",
    .title = "(IA)^3 of PEFT",
    .recognises = ia3_recognises,
    .parts = (const char *const[]){"ia3_l", NULL},
    .foreign = true,
    .load = ia3_load,
    .apply = with_bias_apply,
};
