/* Reading an adapter file onto a model's modules. */
#include "lora/dora.h"

#include "base/memory.h"
#include "lora/residual.h"
#include "lora/words.h"

#include <stdlib.h>
#include <string.h>

static bool is_part_of(const adapter_kind *kind, const char *part) {
    for (const char *const *p = kind->parts; *p; p++)
        if (strcmp(*p, part) == 0) return true;
    return false;
}

/* The module is one of a kind that can be applied, with that kind's parts and no others. */
static bool check_kind(const adapter_file *file, const adapter_group *g, const adapter_kind **kind, error *err) {
    char parts[512];
    adapter_group_text(g, parts, sizeof parts);
    *kind = adapter_kind_of(g);
    if (!*kind) return error_set(err, "%s: module %s: an unknown set of parts (%s)", file->path, g->shown, parts);
    if (!(*kind)->load)
        return error_set(err, "%s: is a %s adapter (module %s), which cannot be applied: half of it is not in the file", file->path,
                         (*kind)->title, g->shown);
    for (int i = 0; i < g->count; i++)
        if (!is_part_of(*kind, g->parts[i].name) && !adapter_residual_part(*kind, g->parts[i].name))
            return error_set(err, "%s: module %s: %s is no part of a %s known here (it has %s)", file->path, g->shown, g->parts[i].name,
                             (*kind)->title, parts);
    return true;
}

/* The width of the text that cross attention reads tells the model: 768 in SD 1.x, 1024 in SD 2, 2048 in SDXL. */
static bool check_context_width(const adapter_file *file, const module_table *table, error *err) {
    for (int i = 0; i < file->group_count; i++) {
        const adapter_group *g = &file->groups[i];
        const adapter_part *down = adapter_group_part(g, "lora_down.weight");
        if (!down || down->tensor->rank < 2 || !strstr(g->module, "_attn2_to_k")) continue;
        const module_info *info = module_table_find(table, g->module);
        int64_t width = down->tensor->dims[1];
        if (info && info->in != width && (width == 1024 || width == 2048))
            return error_set(err, "%s: is an adapter for %s (%s reads texts %lld wide), not for this model", file->path,
                             width == 1024 ? "Stable Diffusion 2" : "SDXL", g->shown, (long long)width);
    }
    return true;
}

/* Also of what does not fit: NaN in part of a file means that the training that wrote it had broken down. */
static bool check_finite(const adapter_file *file, const safetensors_tensor *t, error *err) {
    if (safetensors_first_nonfinite(t->data, t->type, t->elements) == t->elements) return true;
    return error_set(err, "%s: tensor %s has NaN or infinity in it: the training that wrote it had broken down", file->path, t->name);
}

static bool check_group_finite(const adapter_file *file, const adapter_group *g, error *err) {
    for (int i = 0; i < g->count; i++)
        if (!check_finite(file, g->parts[i].tensor, err)) return false;
    return true;
}

static void report_add(adapter_report *report, const char *name) {
    report->unapplied = memory_grow(report->unapplied, (size_t)report->unapplied_count + 1, sizeof *report->unapplied);
    report->unapplied[report->unapplied_count++] = memory_string(name);
}

static bool info_suits(const module_info *info, const adapter_kind *kind) { return (info->kernel == 0) == (kind->apply_norm != NULL); }

static bool load_group(adapter *a, const adapter_file *file, const adapter_group *g, adapter_report *report, error *err) {
    const adapter_kind *kind;
    const module_info *info = module_table_find(a->table, g->module);
    report->total++;
    if (!check_group_finite(file, g, err)) return false;
    if (!info && !adapter_kind_of(g)) {
        report_add(report, g->shown);
        return true;
    }
    if (!check_kind(file, g, &kind, err)) return false;
    if (!info) {
        report_add(report, g->shown);
        return true;
    }
    adapter_module *m = &a->modules[a->module_count++];
    *m = (adapter_module){.kind = kind, .info = info, .scale = 1};
    if (!info_suits(info, kind))
        return error_set(err, "%s: module %s: a %s adapter on a %s", file->path, g->shown, kind->title, info->kernel ? "layer" : "norm");
    if (!kind->load(a, m, file, g, err) || !adapter_dora_load(a, m, g, err) || !adapter_residual_load(a, m, g, err))
        return error_prefix(err, "%s: module %s", file->path, g->shown);
    if (a->trainable && m->kind->foreign)
        return error_set(err, "%s: module %s: a %s can be applied, but not trained further", file->path, g->shown, m->kind->title);
    report->applied++;
    return true;
}

static bool load_groups(adapter *a, const adapter_file *file, adapter_report *report, error *err) {
    if (!check_context_width(file, a->table, err)) return false;
    a->modules = memory_new((size_t)file->group_count, sizeof *a->modules);
    for (int i = 0; i < file->group_count; i++)
        if (!load_group(a, file, &file->groups[i], report, err)) return false;
    for (int i = 0; i < file->other_count; i++) {
        bool word;
        if (!check_finite(file, file->others[i], err) || !adapter_word_load(a, file, file->others[i], &word, err)) return false;
        if (!word) report_add(report, file->others[i]->name);
    }
    if (report->applied > 0 || a->word_count > 0) return true;
    const char *first = report->unapplied_count > 0 ? report->unapplied[0] : "none";
    if (report->total == 0)
        return error_set(err, "%s: is no adapter: no tensor in it has a name that adapters have (the first is %s)", file->path, first);
    return error_set(err, "%s: nothing in it fits this model: none of its %d modules is there (the first is %s)", file->path, report->total,
                     first);
}

adapter *adapter_load(const char *path, const module_table *table, device *d, bool trainable, adapter_report *report, error *err) {
    adapter_report own = {0};
    adapter_file file;
    if (!adapter_file_open(&file, path, err)) return NULL;
    adapter *a = memory_new(1, sizeof *a);
    *a = (adapter){.path = memory_string(path),
                   .device = d,
                   .trainable = trainable,
                   .table = table,
                   .pool = tensor_pool_create(d),
                   .gradients = tensor_pool_create(d)};
    bool ok = load_groups(a, &file, &own, err);
    adapter_file_close(&file);
    if (ok && report) {
        *report = own;
    } else {
        adapter_report_free(&own);
    }
    if (ok) return a;
    adapter_free(a);
    return NULL;
}
