#include "convert/source.h"

#include "convert/outline.h"
#include "lora/kind.h"

#include <string.h>

bool source_base_open(source_base *b, const char *model, int threads, error *err) {
    *b = (source_base){0};
    if (model && !checkpoint_open(&b->model, model, NULL, err)) return false;
    b->has_model = model != NULL;
    if (model) b->table = module_table_create(&b->model, err);
    if (!model || b->table) b->device = device_open("cpu", "fp32", threads, err);
    if (b->device) return true;
    source_base_close(b);
    return false;
}

void source_base_close(source_base *b) {
    device_close(b->device);
    module_table_free(b->table);
    if (b->has_model) checkpoint_close(&b->model);
    *b = (source_base){0};
}

/* Reading those takes weights of the model. */
static bool readable(const adapter_file *file, error *err) {
    for (int i = 0; i < file->group_count; i++) {
        const adapter_kind *kind = adapter_kind_of(&file->groups[i]);
        if (kind && kind->foreign)
            return error_set(err, "%s: module %s: what %s does depends on the weight it changes: give the model with --model", file->path,
                             file->groups[i].shown, kind->title);
    }
    return true;
}

bool source_open(source *s, const source_base *b, const char *path, error *err) {
    *s = (source){0};
    if (!adapter_file_open(&s->file, path, err)) return false;
    s->model = b->has_model ? &b->model : NULL;
    if (!b->table) s->outline = outline_create(&s->file);
    if (b->table || readable(&s->file, err))
        s->adapter = adapter_load(path, b->table ? b->table : s->outline, b->device, false, &s->report, err);
    if (s->adapter) return true;
    source_close(s);
    return false;
}

void source_close(source *s) {
    adapter_free(s->adapter);
    adapter_report_free(&s->report);
    module_table_free(s->outline);
    adapter_file_close(&s->file);
    *s = (source){0};
}

const adapter_group *source_group(const source *s, int index) {
    const char *flat = s->adapter->modules[index].info->flat;
    for (int i = 0; i < s->file.group_count; i++)
        if (strcmp(s->file.groups[i].module, flat) == 0) return &s->file.groups[i];
    return NULL;
}
