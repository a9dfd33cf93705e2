#include "lora/dora.h"

#include "base/memory.h"
#include "lora/parts.h"
#include "lora/residual.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* PEFT, under its own name for them, stores the output axis of a convolution as [1, out, 1, 1]. */
static bool on_output(const adapter_module *m, const safetensors_tensor *t) {
    bool peft = strstr(t->name, "lora_magnitude_vector") != NULL;
    return peft || t->rank < 2 || t->dims[0] != 1 || (m->info->out == 1 && m->info->in > 1 && t->dims[1] == 1);
}

bool adapter_dora_load(adapter *a, adapter_module *m, const adapter_group *g, error *err) {
    const adapter_part *part = adapter_group_part(g, "dora_scale");
    if (!part) return true;
    if (!m->kind->difference) return error_set(err, "has dora_scale, which a %s cannot have", m->kind->title);
    m->dora_on_output = on_output(m, part->tensor);
    if ((int64_t)part->tensor->elements != (m->dora_on_output ? m->info->out : m->info->in)) return part_shape_error(m, part->tensor, err);
    if (!m->dora_on_output) return part_load(a, m, ADAPTER_MAGNITUDE, part, ADAPTER_VECTOR, err);
    /* As LyCORIS shapes it, so that a file written with it says the axis. */
    float *values = adapter_part_read(part, err);
    int64_t dims[] = {m->info->out, 1, 1, 1};
    bool ok = values && adapter_put_tensor(a, m, ADAPTER_MAGNITUDE, part->tensor->name, m->info->convolution ? 4 : 2, dims, ADAPTER_VECTOR,
                                           values, err);
    free(values);
    return ok;
}

bool adapter_dora_init(adapter *a, adapter_module *m, error *err) {
    const module_info *info = m->info;
    const checkpoint_tensor *w = info->weight;
    int64_t taps = (int64_t)info->kernel * info->kernel, dims[] = {1, info->in, 1, 1};
    float *values = memory_try_aligned(w->elements * sizeof *values), *norms = memory_new((size_t)info->in, sizeof *norms);
    if (!values) {
        free(norms);
        return error_set(err, "module %s: not enough memory for its norms", info->flat);
    }
    dtype_to_f32(values, w->data, w->type, w->elements);
    for (int64_t i = 0; i < info->in; i++) {
        double sum = 0;
        for (int64_t o = 0; o < info->out; o++)
            for (int64_t k = 0; k < taps; k++) {
                double f = (double)values[(o * info->in + i) * taps + k];
                sum += f * f;
            }
        norms[i] = (float)sqrt(sum);
    }
    char *name = memory_format("%s.dora_scale", info->flat);
    bool ok = adapter_put_tensor(a, m, ADAPTER_MAGNITUDE, name, info->convolution ? 4 : 2, dims, ADAPTER_VECTOR, norms, err);
    free(name);
    free(values);
    free(norms);
    return ok;
}

/* magnitude / |V| of V's columns or rows. Of a product of small factors, and the model's own weight, V's norms take no V. */
static tensor *factor_of(const adapter_module *m, const adapter_chain *c, int level) {
    tape *t = c->tape;
    tensor *left, *right, *magnitude = adapter_module_magnitude(m);
    bool alone = !adapter_chain_changes(c, level) && !part_value(m, ADAPTER_RESIDUAL);
    if (alone && m->kind->factors && m->kind->factors(m, t, &left, &right))
        return op_dora_factored(t, c->site->weight, left, right, (float)m->scale, magnitude, m->dora_on_output);
    tensor *difference = adapter_chain_difference(c, level, adapter_module_difference(m, t));
    return op_dora(t, c->site->weight, difference, magnitude, m->dora_on_output);
}

/* W + m (V c - W). Columns scaled on the input side: W (x + m (c - 1) x) + m D (c x). Rows, on the output side: y + m (c (V x) - y). */
tensor *adapter_dora_apply(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add,
                           float multiplier) {
    tape *t = c->tape;
    tensor *factor = factor_of(m, c, level);
    if (!factor) return NULL;
    if (m->dora_on_output) {
        tensor *y = adapter_chain_product(c, level, x, &(layer_addend){0});
        return adapter_chain_replace(c, y, adapter_module_branch(m, c, x, y, 1), factor, add, multiplier);
    }
    tensor *scaled = op_scale_columns(t, x, (column_scale){.w = factor, .b = 1});
    tensor *moved = multiplier == 1 ? scaled : op_scale_columns(t, x, (column_scale){.w = factor, .a = 1 - multiplier, .b = multiplier});
    return adapter_module_branch(m, c, scaled, adapter_chain_product(c, level, moved, add), multiplier);
}
