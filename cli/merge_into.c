#include "cli/merge_into.h"

#include "base/file.h"
#include "base/memory.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "convert/merge_checkpoint.h"
#include "lora/stack.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct merging_into {
    device *device;
    checkpoint model;
    module_table *table;
    merge_layer *layers;
    adapter **adapters;
    int count;
    progress progress;
} merging_into;

/* What else merge takes is about the adapter that it writes without --into. */
static bool check_others(const options *o, error *err) {
    static const char *const sensible[] = {"into", "output", "threads", "quiet", "verbose"};
    for (const option *row = option_table; row->name; row++) {
        bool fits = !o->given[row - option_table];
        for (size_t i = 0; !fits && i < sizeof sensible / sizeof *sensible; i++) fits = strcmp(sensible[i], row->name) == 0;
        if (!fits)
            return error_set(err, "--%s is for adapters; with --into the model is written as it is, but for what changes", row->name);
    }
    return true;
}

static bool check_usage(const options *o, error *err) {
    if (!o->output) return error_set(err, "--output is missing: name the model to write, merged.safetensors for example");
    const char *dot = strrchr(o->output, '.');
    if (!dot || strcmp(dot, ".safetensors"))
        return error_set(err, "--output: %s does not end in .safetensors; models are written in that format", o->output);
    struct stat in, out;
    if (stat(o->into, &in) == 0 && stat(o->output, &out) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return error_set(err, "--output: %s is the model of --into; it would be lost", o->output);
    return check_others(o, err);
}

static void show_progress(void *user, int64_t done, int64_t total) {
    progress *p = user;
    if (done == 1) progress_begin(p, "tensor", 0, total);
    progress_update(p, done, NULL);
}

static bool add_layer(merging_into *m, const char *text, error *err) {
    adapter_spec spec;
    adapter_report report = {0};
    if (!adapter_spec_parse(text, &spec, err)) return false;
    adapter *a = adapter_load(spec.path, m->table, m->device, false, &report, err);
    if (a) {
        char unapplied[2048];
        adapter_report_text(&report, spec.path, terminal_verbose() ? report.unapplied_count : 4, unapplied, sizeof unapplied);
        if (*unapplied) terminal_warn("%s", unapplied);
        adapter_report_free(&report);
        m->layers[m->count] = (merge_layer){a, spec};
        m->adapters[m->count++] = a;
    }
    free(spec.path);
    return a != NULL;
}

static bool merge(merging_into *m, const options *o, error *err) {
    char *path = session_find_model(o->into, err);
    bool ok = path && checkpoint_open(&m->model, path, NULL, err);
    free(path);
    if (!ok) return false;
    m->table = module_table_create(&m->model, err);
    m->device = m->table ? device_open("cpu", "fp32", (int)o->threads, err) : NULL;
    ok = m->device != NULL;
    for (int i = 0; ok && i < o->words.count; i++) ok = add_layer(m, o->words.item[i], err);
    merge_options talk = {show_progress, &m->progress};
    int changed;
    ok = ok && merge_into_checkpoint(&m->model, m->table, m->layers, m->count, o->output, &talk, &changed, err);
    progress_end(&m->progress);
    if (ok) terminal_say("%s: %s with %d of its tensors changed", o->output, o->into, changed);
    for (int i = 0; i < m->count; i++) adapter_free(m->adapters[i]);
    device_close(m->device);
    module_table_free(m->table);
    checkpoint_close(&m->model);
    return ok;
}

int merge_into(const options *o) {
    error err = {""};
    if (!check_usage(o, &err)) return terminal_refuse(&err);
    merging_into m = {.layers = memory_new((size_t)o->words.count, sizeof *m.layers),
                      .adapters = memory_new((size_t)o->words.count, sizeof *m.adapters)};
    bool ok = file_check_output(o->output, "--output", &err) && merge(&m, o, &err);
    free(m.layers);
    free(m.adapters);
    return ok ? EXIT_DONE : terminal_fail(&err);
}
