#include "lora/file.h"

#include "base/file.h"
#include "base/memory.h"
#include "lora/foreign.h"
#include "lora/peft.h"
#include "lora/spelling.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One tensor and what its name says. */
typedef struct entry {
    spelling name;
    adapter_part part;
} entry;

static int entry_order(const void *a, const void *b) {
    const entry *x = a, *y = b;
    int order = strcmp(x->name.module, y->name.module);
    return order ? order : strcmp(x->part.name, y->part.name);
}

/* ---- Grouping ---- */

static bool group_begin(adapter_file *file, const entry *e) {
    file->groups = memory_grow(file->groups, (size_t)file->group_count + 1, sizeof *file->groups);
    adapter_group *g = &file->groups[file->group_count++];
    *g = (adapter_group){.part = e->name.model, .style = e->name.style};
    g->module = memory_string(e->name.module);
    g->shown = memory_string(e->name.shown);
    g->path = e->name.path[0] ? memory_string(e->name.path) : NULL;
    return true;
}

static void add_repeat(adapter_file *file, const safetensors_tensor *kept, const safetensors_tensor *other) {
    file->repeats = memory_grow(file->repeats, (size_t)file->repeat_count + 1, sizeof *file->repeats);
    file->repeats[file->repeat_count][0] = kept;
    file->repeats[file->repeat_count++][1] = other;
}

static bool group_entries(adapter_file *file, entry *entries, size_t count, error *err) {
    if (count > 0) qsort(entries, count, sizeof *entries, entry_order);
    for (size_t i = 0; i < count; i++) {
        const entry *e = &entries[i];
        if (i == 0 || strcmp(entries[i - 1].name.module, e->name.module) != 0) group_begin(file, e);
        adapter_group *g = &file->groups[file->group_count - 1];
        bool repeated = g->count > 0 && strcmp(g->parts[g->count - 1].name, e->part.name) == 0;
        if (repeated && file->keeps_repeats) {
            add_repeat(file, g->parts[g->count - 1].tensor, e->part.tensor);
            continue;
        }
        if (repeated)
            return error_set(err, "%s: module %s has %s twice: tensors %s and %s", file->path, g->shown, e->part.name,
                             g->parts[g->count - 1].tensor->name, e->part.tensor->name);
        g->parts = memory_grow(g->parts, (size_t)g->count + 1, sizeof *g->parts);
        g->parts[g->count++] = e->part;
    }
    return true;
}

static void add_other(adapter_file *file, const safetensors_tensor *tensor) {
    file->others = memory_grow(file->others, (size_t)file->other_count + 1, sizeof *file->others);
    file->others[file->other_count++] = tensor;
}

/* hints: of each source, the model its bare names belong to. */
static bool group_sources(adapter_file *file, const checkpoint_part hints[2], error *err) {
    size_t total = 0, count = 0;
    for (int s = 0; s < file->source_count; s++) total += file->sources[s].count;
    entry *entries = memory_new(total + 1, sizeof *entries);
    for (int s = 0; s < file->source_count; s++) {
        const safetensors *source = &file->sources[s];
        for (size_t i = 0; i < source->count; i++) {
            entry *e = &entries[count];
            if (!spelling_read(source->tensors[i].name, hints[s], &e->name)) {
                add_other(file, &source->tensors[i]);
                continue;
            }
            e->part = (adapter_part){.name = e->name.part, .tensor = &source->tensors[i], .source = source};
            count++;
        }
    }
    bool ok = group_entries(file, entries, count, err);
    free(entries);
    return ok;
}

/* ---- Opening ---- */

static bool open_source(adapter_file *file, const char *path, error *err) {
    safetensors *st = &file->sources[file->source_count];
    if (!safetensors_open(st, path, err)) return false;
    file->source_count++;
    return foreign_check(st, err);
}

/* "DIR/model.safetensors" with DIR/adapter_config.json. */
static bool open_peft(adapter_file *file, const char *folder, json_t **config, error *err) {
    char *path = memory_format("%s/adapter_config.json", folder);
    *config = peft_config_read(path, err);
    free(path);
    if (!*config) return false;
    path = memory_format("%s/adapter_model.safetensors", folder);
    bool there = file_exists(path);
    bool ok = there
                  ? open_source(file, path, err)
                  : error_set(err, "%s: has no adapter_model.safetensors; a PEFT adapter saved as .bin must be saved again as safetensors",
                              folder);
    free(path);
    return ok;
}

static bool has_file(const char *folder, const char *name) {
    char *path = memory_format("%s/%s", folder, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

/* PEFT's folder of one model: only the tensors' names tell which one. */
static bool open_one_model(adapter_file *file, error *err) {
    const checkpoint_part hints[2] = {CHECKPOINT_PARTS, CHECKPOINT_PARTS};
    json_t *config = NULL;
    bool ok = open_peft(file, file->path, &config, err) && group_sources(file, hints, err);
    for (int p = 0; config && p < CHECKPOINT_PARTS; p++) file->config[p] = json_incref(config);
    json_decref(config);
    return ok;
}

static bool open_two_models(adapter_file *file, error *err) {
    static const struct {
        const char *folder;
        checkpoint_part part;
    } models[] = {{"unet", CHECKPOINT_UNET}, {"text_encoder", CHECKPOINT_TEXT_ENCODER}};
    checkpoint_part hints[2] = {CHECKPOINT_PARTS, CHECKPOINT_PARTS};
    for (int m = 0; m < 2; m++) {
        char *folder = memory_format("%s/%s", file->path, models[m].folder);
        bool there = has_file(folder, "adapter_config.json");
        hints[file->source_count] = models[m].part;
        bool ok = !there || open_peft(file, folder, &file->config[models[m].part], err);
        free(folder);
        if (!ok) return false;
    }
    return group_sources(file, hints, err);
}

static bool open_plain(adapter_file *file, const char *path, error *err) {
    const checkpoint_part hints[2] = {CHECKPOINT_PARTS, CHECKPOINT_PARTS};
    return open_source(file, path, err) && peft_config_from_metadata(&file->sources[0], file->config, err) &&
           group_sources(file, hints, err);
}

static bool open_folder(adapter_file *file, error *err) {
    file->folder = true;
    if (has_file(file->path, "adapter_config.json")) return open_one_model(file, err);
    if (has_file(file->path, "unet/adapter_config.json") || has_file(file->path, "text_encoder/adapter_config.json"))
        return open_two_models(file, err);
    if (has_file(file->path, "pytorch_lora_weights.safetensors")) {
        char *path = memory_format("%s/pytorch_lora_weights.safetensors", file->path);
        bool ok = open_plain(file, path, err);
        free(path);
        return ok;
    }
    return error_set(err,
                     "%s: is a folder without an adapter: looked for adapter_config.json, unet/adapter_config.json, "
                     "text_encoder/adapter_config.json and pytorch_lora_weights.safetensors",
                     file->path);
}

static bool open_path(adapter_file *file, const char *path, bool keeps_repeats, error *err) {
    *file = (adapter_file){.path = memory_string(path), .keeps_repeats = keeps_repeats};
    if (file_is_directory(path) ? open_folder(file, err) : open_plain(file, path, err)) return true;
    adapter_file_close(file);
    return false;
}

bool adapter_file_open(adapter_file *file, const char *path, error *err) { return open_path(file, path, false, err); }

bool adapter_file_look(adapter_file *file, const char *path, error *err) { return open_path(file, path, true, err); }

void adapter_file_close(adapter_file *file) {
    for (int i = 0; i < file->group_count; i++) {
        free(file->groups[i].module);
        free(file->groups[i].path);
        free(file->groups[i].shown);
        free(file->groups[i].parts);
    }
    free(file->groups);
    free(file->others);
    free(file->repeats);
    for (int p = 0; p < CHECKPOINT_PARTS; p++) json_decref(file->config[p]);
    for (int s = 0; s < file->source_count; s++) safetensors_close(&file->sources[s]);
    free(file->path);
    *file = (adapter_file){0};
}

/* ---- Looking into a module ---- */

const adapter_part *adapter_group_part(const adapter_group *g, const char *name) {
    for (int i = 0; i < g->count; i++)
        if (strcmp(g->parts[i].name, name) == 0) return &g->parts[i];
    return NULL;
}

float *adapter_part_read(const adapter_part *part, error *err) {
    const safetensors_tensor *t = part->tensor;
    switch (t->type) {
    case DTYPE_F32:
    case DTYPE_F16:
    case DTYPE_BF16:
    case DTYPE_F64:
    case DTYPE_F8_E4M3:
    case DTYPE_F8_E5M2: break;
    default: error_set(err, "tensor %s is %s; factors of an adapter are floating-point numbers", t->name, dtype_name(t->type)); return NULL;
    }
    size_t bad = safetensors_first_nonfinite(t->data, t->type, t->elements);
    if (bad < t->elements) {
        error_set(err,
                  "tensor %s has NaN or infinity in it (element %zu): the training that wrote it had broken down, no weight can mend it",
                  t->name, bad);
        return NULL;
    }
    return safetensors_read_f32(part->source, t, err);
}

bool adapter_group_scalar(const adapter_group *g, const char *name, double *value, bool *present, error *err) {
    const adapter_part *part = adapter_group_part(g, name);
    *present = part != NULL;
    if (!part) return true;
    const safetensors_tensor *t = part->tensor;
    if (t->elements != 1) return error_set(err, "tensor %s has %zu elements, it must be one number", t->name, t->elements);
    float number;
    dtype_to_f32(&number, t->data, t->type, 1);
    if (!isfinite(number)) return error_set(err, "tensor %s is NaN or infinity", t->name);
    *value = (double)number;
    return true;
}

bool adapter_file_peft_scale(const adapter_file *file, const adapter_group *g, int64_t rank, bool *present, double *scale, error *err) {
    const json_t *config = g->path ? file->config[g->part] : NULL;
    *present = config != NULL;
    return !config || peft_scale(config, g->path, rank, scale, err);
}

void adapter_group_text(const adapter_group *g, char *out, size_t size) {
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < g->count && used < size; i++) {
        char shape[128];
        const safetensors_tensor *t = g->parts[i].tensor;
        safetensors_shape_text(shape, sizeof shape, t->rank, t->dims);
        int n = snprintf(out + used, size - used, "%s%s %s", i ? ", " : "", g->parts[i].name, shape);
        if (n < 0) break;
        used += (size_t)n;
    }
}
