#include "convert/merge_checkpoint.h"

#include "base/memory.h"
#include "formats/safetensors.h"
#include "lora/change.h"
#include "lycoris/kinds.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct merging {
    const checkpoint *model;
    const merge_layer *layers;
    int count;
    const merge_options *options;
    int64_t total, done;
} merging;

/* A tensor that changes: the weight or the bias of a module. */
typedef struct changing {
    merging *merging;
    const module_info *info;
    const checkpoint_tensor *tensor;
    const safetensors_tensor *stored; /* the same in the file; NULL: this tensor of the file does not change */
    bool bias;
} changing;

/* ---- One tensor ---- */

/* The layer's module there, NULL where it changes nothing. */
static const adapter_module *module_of(const merge_layer *l, const module_info *info) {
    return adapter_spec_weight(&l->spec, info) != 0 ? adapter_find_module(l->adapter, info->part, info->name) : NULL;
}

static bool has_part(const adapter_module *m, const char *part) {
    for (int i = 0; m->kind->parts[i]; i++)
        if (strcmp(m->kind->parts[i], part) == 0) return m->tensors[i].value != NULL;
    return false;
}

/* Differences say themselves which of the two they are of; of the other kinds only PEFT's (IA)^3 scales biases too. */
static bool may_change(const adapter_module *m, bool bias) {
    if (m->kind == &adapter_kind_full) return has_part(m, bias ? "diff_b" : "diff");
    if (m->kind == &adapter_kind_norm) return has_part(m, bias ? "b_norm" : "w_norm");
    return !bias || m->kind->foreign;
}

/* values: the bias as the layers before left it, which is what (IA)^3 must find instead of the model's. */
static bool add_bias(const changing *c, const merge_layer *l, const adapter_module *m, float strength, float *values, error *err) {
    checkpoint_tensor now = *c->tensor;
    checkpoint model = {.path = c->merging->model->path};
    change d;
    now.type = DTYPE_F32, now.data = values, now.bytes = now.elements * sizeof *values;
    model.parts[c->info->part] = (checkpoint_table){.tensors = &now, .count = 1};
    if (!change_compute(l->adapter, m, &model, &d, err)) return false;
    for (size_t i = 0; d.bias && i < now.elements; i++) values[i] += strength * d.bias[i];
    change_free(&d);
    return true;
}

static bool apply_layer(const changing *c, const merge_layer *l, float *values, error *err) {
    const adapter_module *m = module_of(l, c->info);
    float strength = adapter_spec_weight(&l->spec, c->info);
    if (!m || !may_change(m, c->bias)) return true;
    bool ok = c->bias ? add_bias(c, l, m, strength, values, err) : change_add(l->adapter, m, strength, values, err);
    return ok || error_prefix(err, "%s: module %s", l->adapter->path, c->info->flat);
}

static bool round_values(const safetensors_tensor *t, const float *values, void *out, error *err) {
    for (size_t i = 0; t->type == DTYPE_F64 && i < t->elements; i++) {
        double wide = values[i];
        memcpy((char *)out + i * sizeof wide, &wide, sizeof wide);
    }
    if (t->type != DTYPE_F64) dtype_from_f32(out, t->type, values, t->elements);
    size_t at = safetensors_first_nonfinite(out, t->type, t->elements);
    return at == t->elements || error_set(err, "tensor %s: the merged value %g does not fit %s (element %zu)", t->name, (double)values[at],
                                          dtype_name(t->type), at);
}

static bool fill(void *context, void *out, size_t bytes, error *err) {
    (void)bytes;
    const changing *c = context;
    merging *g = c->merging;
    float *values = memory_try_aligned(c->stored->elements * sizeof *values);
    bool ok = values || error_set(err, "tensor %s: not enough memory to change it", c->stored->name);
    if (ok) dtype_to_f32(values, c->stored->data, c->stored->type, c->stored->elements);
    for (int i = 0; ok && i < g->count; i++) ok = apply_layer(c, &g->layers[i], values, err);
    ok = ok && round_values(c->stored, values, out, err);
    free(values);
    checkpoint_forget(g->model, c->tensor);
    g->done++;
    if (ok && g->options->progress) g->options->progress(g->options->user, g->done, g->total);
    return ok;
}

/* ---- Which tensors ---- */

static void plan_tensor(merging *g, changing *plan, const module_info *info, const checkpoint_tensor *t, bool bias) {
    const safetensors *st = &g->model->files[0];
    const safetensors_tensor *stored = t ? safetensors_find(st, t->stored) : NULL;
    if (!stored) return;
    g->total++;
    plan[stored - st->tensors] = (changing){g, info, t, stored, bias};
}

static void plan_module(merging *g, changing *plan, const module_info *info) {
    bool weight = false, bias = false;
    for (int i = 0; i < g->count; i++) {
        const adapter_module *m = module_of(&g->layers[i], info);
        weight = weight || (m && may_change(m, false));
        bias = bias || (m && may_change(m, true));
    }
    if (weight) plan_tensor(g, plan, info, info->weight, false);
    if (!bias) return;
    char *name = memory_format("%s.bias", info->name);
    plan_tensor(g, plan, info, checkpoint_find(g->model, info->part, name), true);
    free(name);
}

/* Hashes in metadata are those of the tensors before. */
static bool is_hash(const char *key) {
    static const char *const keys[] = {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i], key) == 0) return true;
    return false;
}

static bool write_model(const merging *g, changing *plan, const char *path, error *err) {
    const safetensors *st = &g->model->files[0];
    safetensors_writer w = {0};
    bool ok = true;
    for (size_t i = 0; i < st->metadata_count; i++)
        if (!is_hash(st->metadata[i].key)) safetensors_writer_metadata(&w, st->metadata[i].key, st->metadata[i].value);
    for (size_t i = 0; ok && i < st->count; i++) {
        const safetensors_tensor *t = &st->tensors[i];
        ok = plan[i].stored ? safetensors_writer_add_fill(&w, t->name, t->type, t->rank, t->dims, fill, &plan[i], err)
                            : safetensors_writer_add(&w, t->name, t->type, t->rank, t->dims, t->data, err);
    }
    ok = ok && safetensors_writer_write(&w, path, err);
    safetensors_writer_free(&w);
    return ok;
}

bool merge_into_checkpoint(const checkpoint *model, const module_table *table, const merge_layer *layers, int count, const char *path,
                           const merge_options *o, int *changed, error *err) {
    if (model->folder) return error_set(err, "%s is a folder; adapters are merged into a model in a single .safetensors file", model->path);
    merging g = {.model = model, .layers = layers, .count = count, .options = o};
    changing *plan = memory_new(model->files[0].count + 1, sizeof *plan);
    for (int i = 0; i < table->count; i++) plan_module(&g, plan, &table->modules[i]);
    bool ok = g.total > 0 || error_set(err, "the adapters change nothing in %s at these strengths", model->path);
    ok = ok && write_model(&g, plan, path, err);
    free(plan);
    *changed = (int)g.total;
    return ok;
}
