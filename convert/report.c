#include "convert/report.h"

#include "base/memory.h"
#include "lycoris/kinds.h"

#include <math.h>
#include <stdlib.h>

const char *report_group_text(report_group group) {
    static const char *const texts[REPORT_GROUPS] = {
        [REPORT_NORMS] = "left out, because a LoRA holds no norms",
        [REPORT_BIASES] = "their biases were left out, because a LoRA holds none",
        [REPORT_UNKNOWN] = "left out, because they belong to no module of the model",
        [REPORT_WEBUI_DORA] = "webui takes this DoRA's norms of outputs for norms of inputs; --kind full --model M writes what it loads",
        [REPORT_WEBUI_GLORA] = "webui skips GLoRA on convolutions; --kind full --model M writes what it loads",
        [REPORT_WEBUI_IA3] = "webui skips (IA)^3 on outputs of convolutions; --kind full --model M writes what it loads",
    };
    return texts[group];
}

void report_name(convert_report *r, report_group group, const char *name) {
    int n = r->groups[group].count++;
    r->groups[group].names = memory_grow(r->groups[group].names, (size_t)n + 1, sizeof *r->groups[group].names);
    r->groups[group].names[n] = memory_string(name);
}

void report_loss(convert_report *r, const char *flat, recast_loss loss) {
    r->losses = memory_grow(r->losses, (size_t)r->loss_count + 1, sizeof *r->losses);
    r->losses[r->loss_count].flat = memory_string(flat);
    r->losses[r->loss_count++].loss = loss;
}

void report_draft(convert_report *r, const draft *d, bool kohya) {
    r->modules = d->count;
    double alpha = NAN;
    for (int i = 0; i < d->count; i++) {
        const draft_module *m = &d->modules[i];
        int k = 0;
        while (k < REPORT_KINDS && r->kinds[k] && r->kinds[k] != m->kind->title) k++;
        if (k < REPORT_KINDS) r->kinds[k] = m->kind->title;
        if (!kohya) continue;
        if (m->kind == &adapter_kind_lora) {
            r->mixed_alphas = r->mixed_alphas || (!isnan(alpha) && alpha != m->alpha);
            alpha = m->alpha;
        }
        if (m->dora_on_output && draft_find(m, "dora_scale")) report_name(r, REPORT_WEBUI_DORA, m->info->flat);
        if (m->kind == &adapter_kind_glora && m->info->kernel > 1) report_name(r, REPORT_WEBUI_GLORA, m->info->flat);
        if (m->kind == &adapter_kind_ia3 && m->info->convolution && m->alpha == 0) report_name(r, REPORT_WEBUI_IA3, m->info->flat);
    }
}

double report_error(const convert_report *r) {
    double cut = 0, whole = 0;
    for (int i = 0; i < r->loss_count; i++) {
        const recast_loss *l = &r->losses[i].loss;
        cut += l->norm * l->error * l->norm * l->error;
        whole += l->norm * l->norm;
    }
    return whole > 0 ? sqrt(cut / whole) : 0;
}

void report_free(convert_report *r) {
    for (int g = 0; g < REPORT_GROUPS; g++) {
        for (int i = 0; i < r->groups[g].count; i++) free(r->groups[g].names[i]);
        free(r->groups[g].names);
    }
    for (int i = 0; i < r->loss_count; i++) free(r->losses[i].flat);
    free(r->losses);
    *r = (convert_report){0};
}
