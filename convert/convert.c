#include "convert/convert.h"

#include "convert/labels.h"
#include "convert/metadata.h"
#include "convert/source.h"
#include "lora/dora.h"
#include "lycoris/kinds.h"

#include <stdlib.h>
#include <string.h>

typedef struct job {
    const convert_options *o;
    const source *source;
    draft draft;
    convert_report *report;
} job;

/* ---- Modules ---- */

bool convert_change(draft *d, const module_info *info, change *c, const convert_options *o, dtype type, convert_report *report,
                    error *err) {
    if (o->kind != TARGET_LORA) {
        recast_full(d, info, c, type);
        return true;
    }
    if (info->kernel == 0) {
        report_name(report, REPORT_NORMS, info->flat);
        return true;
    }
    if (c->bias) report_name(report, REPORT_BIASES, info->flat);
    if (!c->weight) return true;
    if (!rank_wanted(&o->rank)) return error_set(err, "is no LoRA, and becomes one of the rank that --rank N gives");
    recast_loss loss;
    if (!recast_matrix(d, info, c->weight, &o->rank, type, &loss, err)) return false;
    report_loss(report, info->flat, loss);
    return true;
}

static bool by_change(job *j, const adapter_module *m, dtype type, error *err) {
    change c;
    if (j->o->kind == TARGET_LORA && m->info->kernel && m->kind != &adapter_kind_full && !rank_wanted(&j->o->rank))
        return error_set(err, "is %s%s, and becomes a LoRA of the rank that --rank N gives", m->kind->title,
                         adapter_module_magnitude(m) ? " with DoRA" : "");
    if (!change_compute(j->source->adapter, m, j->source->model, &c, err)) return false;
    bool ok = convert_change(&j->draft, m->info, &c, j->o, type, j->report, err);
    change_free(&c);
    return ok;
}

static bool by_factors(job *j, const adapter_module *m, int index, dtype type, error *err) {
    const adapter_group *g = source_group(j->source, index);
    bool two = m->kind == &adapter_kind_lora && !adapter_group_part(g, "lora_mid.weight");
    if (two && rank_fits(&j->o->rank, m->info, m->rank)) return recast_same(&j->draft, j->source, index, err);
    factors f;
    if (!change_factors(j->source->adapter, m, &f, err)) return false;
    if (rank_fits(&j->o->rank, m->info, f.rank)) {
        recast_keep_factors(&j->draft, m->info, &f, type);
        return true;
    }
    recast_loss loss;
    bool ok = recast_factors(&j->draft, m->info, &f, &j->o->rank, type, &loss, err);
    factors_free(&f);
    if (ok) report_loss(j->report, m->info->flat, loss);
    return ok;
}

static bool convert_module(job *j, int index, error *err) {
    const convert_options *o = j->o;
    const adapter_module *m = &j->source->adapter->modules[index];
    dtype type = recast_type(source_group(j->source, index));
    bool norm = m->info->kernel == 0;
    if (o->kind == TARGET_FULL && (norm || m->kind == &adapter_kind_full)) return recast_same(&j->draft, j->source, index, err);
    if (o->kind == TARGET_FULL) return by_change(j, m, type, err);
    if (o->kind == TARGET_LORA) return change_has_factors(m) ? by_factors(j, m, index, type, err) : by_change(j, m, type, err);
    if (!rank_wanted(&o->rank) || norm) return recast_same(&j->draft, j->source, index, err);
    if (m->kind != &adapter_kind_lora || adapter_module_magnitude(m))
        return error_set(err, "is %s%s, whose rank cannot be changed; --kind lora makes it a LoRA of that rank", m->kind->title,
                         adapter_module_magnitude(m) ? " with DoRA" : "");
    return by_factors(j, m, index, type, err);
}

static bool convert_modules(job *j, error *err) {
    const adapter *a = j->source->adapter;
    for (int i = 0; i < a->module_count; i++) {
        bool ok = convert_module(j, i, err);
        if (ok && j->o->cut_rank) ok = recast_cut(&j->draft.modules[j->draft.count - 1], j->o->cut_rank, err);
        if (!ok) return error_prefix(err, "%s: module %s", j->source->file.path, a->modules[i].info->flat);
        if (j->o->progress) j->o->progress(j->o->user, i + 1, a->module_count);
    }
    return true;
}

/* ---- Files ---- */

static bool is_rewritten(const convert_options *o) { return o->kind != TARGET_SAME || rank_wanted(&o->rank) || o->cut_rank; }

static void make_labels(labels *l, const job *j) {
    const safetensors *first = &j->source->file.sources[0];
    labels_copy(l, first);
    if (!labels_get(l, "ss_network_module") || is_rewritten(j->o)) labels_network(l, &j->draft);
}

/* Names of what is not written: modules that the model lacks, and tensors of no module unless they are copied as they are. */
static void report_unapplied(const job *j, bool others_kept) {
    const adapter_report *r = &j->source->report;
    for (int i = 0; i < r->unapplied_count; i++) {
        bool other = false;
        for (int k = 0; k < j->source->file.other_count; k++)
            other = other || strcmp(j->source->file.others[k]->name, r->unapplied[i]) == 0;
        if (!other || !others_kept) report_name(j->report, REPORT_UNKNOWN, r->unapplied[i]);
    }
}

static bool write_job(job *j, const char *out, error *err) {
    bool kohya = j->o->format == SPELL_KOHYA;
    labels l = {0};
    make_labels(&l, j);
    if (j->o->edits && !metadata_edit(&l, j->o->edits, err)) {
        labels_free(&l);
        return false;
    }
    report_unapplied(j, kohya);
    report_draft(j->report, &j->draft, kohya);
    spell_options s = {.format = j->o->format, .type = j->o->type, .metadata = l.pairs, .metadata_count = l.count};
    if (kohya) s.others = j->source->file.others, s.other_count = (size_t)j->source->file.other_count;
    bool ok = spell_write(&j->draft, out, &s, err) && (!j->o->edits || metadata_side_files(out, &l, j->o->edits, err));
    labels_free(&l);
    return ok;
}

bool convert_adapter(const char *in, const char *out, const convert_options *o, convert_report *report, error *err) {
    source_base base;
    source s;
    if (!source_base_open(&base, o->model, o->threads, err)) return false;
    bool ok = source_open(&s, &base, in, err);
    if (ok) {
        job j = {.o = o, .source = &s, .report = report};
        ok = convert_modules(&j, err) && write_job(&j, out, err);
        draft_free(&j.draft);
        source_close(&s);
    }
    source_base_close(&base);
    return ok;
}
