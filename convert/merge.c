#include "convert/merge.h"

#include "base/memory.h"
#include "convert/labels.h"
#include "convert/metadata.h"
#include "convert/source.h"
#include "lora/save.h"

#include <stdlib.h>
#include <string.h>

typedef struct merger {
    const convert_options *o;
    const adapter_spec *specs;
    source *sources;
    int count;
    draft draft;
    convert_report *report;
} merger;

/* What one adapter has at a module. */
typedef struct share {
    const source *source;
    const adapter_module *module;
    int index;
    double weight;
} share;

/* Writes into shares, [count], and returns how many there are. */
static int find_shares(const merger *mg, const module_info *info, share *shares) {
    int n = 0;
    for (int i = 0; i < mg->count; i++) {
        const adapter *a = mg->sources[i].adapter;
        const adapter_module *m = adapter_find_module(a, info->part, info->name);
        double weight = (double)adapter_spec_weight(&mg->specs[i], info);
        if (m && weight != 0) shares[n++] = (share){&mg->sources[i], m, (int)(m - a->modules), weight};
    }
    return n;
}

static bool same_shape(const merger *mg, const module_info *info, error *err) {
    for (int i = 0; i < mg->count; i++) {
        const adapter_module *m = adapter_find_module(mg->sources[i].adapter, info->part, info->name);
        if (m && (m->info->out != info->out || m->info->in != info->in || m->info->kernel != info->kernel) && !change_needs_model(m))
            return error_set(err, "%s: module %s is of another size than in %s: the adapters are for different models", mg->specs[i].path,
                             info->flat, mg->specs[0].path);
    }
    return true;
}

/* ---- LoRAs ---- */

/* down one below the other, up side by side, every weight and scale in up. */
static bool concatenate(const share *shares, int n, const module_info *info, factors *sum, error *err) {
    int64_t columns = info->in * info->kernel * info->kernel, at = 0;
    *sum = (factors){.rows = info->out, .columns = columns, .scale = 1};
    factors *f = memory_new((size_t)n, sizeof *f);
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        ok = change_factors(shares[i].source->adapter, shares[i].module, &f[i], err);
        sum->rank += f[i].rank;
    }
    sum->up = ok ? memory_try_aligned((size_t)(info->out * sum->rank) * sizeof(float)) : NULL;
    sum->down = ok ? memory_try_aligned((size_t)(sum->rank * columns) * sizeof(float)) : NULL;
    if (ok && (!sum->up || !sum->down)) ok = error_set(err, "not enough memory for a LoRA of rank %lld", (long long)sum->rank);
    for (int i = 0; ok && i < n; i++) {
        double factor = f[i].scale * shares[i].weight;
        for (int64_t o = 0; o < info->out; o++)
            for (int64_t k = 0; k < f[i].rank; k++) sum->up[o * sum->rank + at + k] = (float)((double)f[i].up[o * f[i].rank + k] * factor);
        memcpy(sum->down + at * columns, f[i].down, (size_t)(f[i].rank * columns) * sizeof(float));
        at += f[i].rank;
    }
    for (int i = 0; i < n; i++) factors_free(&f[i]);
    free(f);
    if (!ok) factors_free(sum);
    return ok;
}

static bool merge_factors(merger *mg, const share *shares, int n, const module_info *info, dtype type, error *err) {
    factors sum;
    const rank_choice *choice = &mg->o->rank;
    if (!concatenate(shares, n, info, &sum, err)) return false;
    if (rank_fits(choice, info, sum.rank)) {
        recast_keep_factors(&mg->draft, info, &sum, type);
        return true;
    }
    recast_loss loss;
    bool ok = recast_factors(&mg->draft, info, &sum, choice, type, &loss, err);
    factors_free(&sum);
    if (ok) report_loss(mg->report, info->flat, loss);
    return ok;
}

/* ---- Anything ---- */

static void add_scaled(float **sum, const float *values, int64_t n, double weight) {
    if (!values) return;
    if (!*sum) *sum = memory_new((size_t)n, sizeof **sum);
    for (int64_t i = 0; i < n; i++) (*sum)[i] = (float)((double)(*sum)[i] + weight * (double)values[i]);
}

static bool merge_changes(merger *mg, const share *shares, int n, const module_info *info, dtype type, error *err) {
    change sum = {0}, c;
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        ok = change_compute(shares[i].source->adapter, shares[i].module, shares[i].source->model, &c, err);
        if (!ok) {
            error_prefix(err, "%s: module %s", shares[i].source->file.path, info->flat);
            break;
        }
        sum.rows = c.rows, sum.columns = c.columns;
        add_scaled(&sum.weight, c.weight, c.rows * c.columns, shares[i].weight);
        add_scaled(&sum.bias, c.bias, c.rows, shares[i].weight);
        change_free(&c);
    }
    convert_options o = *mg->o;
    o.kind = rank_wanted(&o.rank) ? TARGET_LORA : TARGET_FULL;
    ok = ok && convert_change(&mg->draft, info, &sum, &o, type, mg->report, err);
    change_free(&sum);
    return ok;
}

/* ---- All modules ---- */

static bool all_factors(const merger *mg) {
    for (int i = 0; i < mg->count; i++)
        for (int k = 0; k < mg->sources[i].adapter->module_count; k++) {
            const adapter_module *m = &mg->sources[i].adapter->modules[k];
            if (m->kind != &adapter_kind_lora || !change_has_factors(m)) return false;
        }
    return true;
}

static bool merge_module(merger *mg, const module_info *info, bool loras, error *err) {
    share *shares = memory_new((size_t)mg->count, sizeof *shares);
    int n = find_shares(mg, info, shares);
    bool ok = same_shape(mg, info, err);
    if (ok && n > 0) {
        dtype type = recast_type(source_group(shares[0].source, shares[0].index));
        bool factored = mg->o->kind != TARGET_FULL;
        for (int i = 0; i < n; i++) factored = factored && change_has_factors(shares[i].module) && (loras || rank_wanted(&mg->o->rank));
        ok = factored ? merge_factors(mg, shares, n, info, type, err) : merge_changes(mg, shares, n, info, type, err);
        if (!ok && !strstr(err->text, info->flat)) error_prefix(err, "module %s", info->flat);
    }
    free(shares);
    return ok;
}

/* Every module that any of them has, once. */
static bool merge_modules(merger *mg, error *err) {
    bool loras = all_factors(mg);
    if (mg->o->kind == TARGET_LORA && !loras && !rank_wanted(&mg->o->rank))
        return error_set(err, "not all of the adapters are LoRAs: their sum becomes a LoRA of the rank that --rank N gives");
    int64_t total = 0, done = 0;
    for (int i = 0; i < mg->count; i++) total += mg->sources[i].adapter->module_count;
    for (int i = 0; i < mg->count; i++)
        for (int k = 0; k < mg->sources[i].adapter->module_count; k++) {
            const module_info *info = mg->sources[i].adapter->modules[k].info;
            bool before = false;
            for (int b = 0; b < i; b++) before = before || adapter_find_module(mg->sources[b].adapter, info->part, info->name);
            if (!before && !merge_module(mg, info, loras, err)) return false;
            if (mg->o->progress) mg->o->progress(mg->o->user, ++done, total);
        }
    return true;
}

/* ---- Files ---- */

static void make_labels(labels *l, const merger *mg) {
    static const char *const kept[] = {"ss_base_model_version",
                                       "ss_v2",
                                       "ss_sd_model_name",
                                       "ss_sd_model_hash",
                                       "ss_new_sd_model_hash",
                                       "ss_vae_name",
                                       "ss_vae_hash",
                                       "ss_new_vae_hash",
                                       "modelspec.sai_model_spec",
                                       "ss_clip_skip",
                                       "ss_resolution",
                                       "modelspec.architecture",
                                       "modelspec.implementation",
                                       "modelspec.resolution",
                                       "modelspec.prediction_type"};
    char *from = memory_string("");
    for (int i = 0; i < mg->count; i++) {
        char unet[32], text[32];
        metadata_number((double)mg->specs[i].unet_weight, unet);
        metadata_number((double)mg->specs[i].text_weight, text);
        const char *slash = strrchr(mg->specs[i].path, '/');
        char *longer = memory_format("%s%s%s:%s:%s", from, i ? ", " : "", slash && slash[1] ? slash + 1 : mg->specs[i].path, unet, text);
        free(from);
        from = longer;
    }
    labels_copy_keys(l, &mg->sources[0].file.sources[0], kept, sizeof kept / sizeof *kept);
    labels_set(l, "modelspec.merged_from", from);
    free(from);
    labels_network(l, &mg->draft);
}

static bool write_merged(merger *mg, const char *out, error *err) {
    labels l = {0};
    make_labels(&l, mg);
    report_draft(mg->report, &mg->draft, mg->o->format == SPELL_KOHYA);
    for (int i = 0; i < mg->count; i++)
        for (int k = 0; k < mg->sources[i].report.unapplied_count; k++)
            report_name(mg->report, REPORT_UNKNOWN, mg->sources[i].report.unapplied[k]);
    spell_options s = {.format = mg->o->format, .type = mg->o->type};
    bool ok = !mg->o->edits || metadata_edit(&l, mg->o->edits, err);
    s.metadata = l.pairs, s.metadata_count = l.count;
    ok = ok && spell_write(&mg->draft, out, &s, err) && (!mg->o->edits || metadata_side_files(out, &l, mg->o->edits, err));
    labels_free(&l);
    return ok;
}

bool merge_adapters(const adapter_spec *specs, int count, const char *out, const convert_options *o, convert_report *report, error *err) {
    source_base base;
    if (!source_base_open(&base, o->model, o->threads, err)) return false;
    merger mg = {.o = o, .specs = specs, .report = report};
    mg.sources = memory_new((size_t)count, sizeof *mg.sources);
    bool ok = true;
    for (; ok && mg.count < count; mg.count += ok) ok = source_open(&mg.sources[mg.count], &base, specs[mg.count].path, err);
    ok = ok && merge_modules(&mg, err) && write_merged(&mg, out, err);
    draft_free(&mg.draft);
    for (int i = 0; i < mg.count; i++) source_close(&mg.sources[i]);
    free(mg.sources);
    source_base_close(&base);
    return ok;
}
