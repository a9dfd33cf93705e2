/* features.md 7: sd-scripts' extract_lora_from_models, without its clamping, over every module that differs. */
#include "convert/extract.h"

#include "base/memory.h"
#include "convert/difference.h"
#include "convert/spell.h"
#include "convert/svd.h"
#include "lora/modules.h"
#include "lora/save.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct extraction {
    const checkpoint *base, *tuned;
    const extract_options *options;
    module_table *table;
    bool *is_module[CHECKPOINT_PARTS]; /* by number of the base's tensor */
    draft lora;
    double squares, cut; /* of the modules' differences, and of what the LoRA lacks of them */
    extract_report *report;
} extraction;

void extract_report_free(extract_report *report) {
    for (int i = 0; i < report->loss_count; i++) free(report->losses[i].name);
    free(report->losses);
    *report = (extract_report){0};
}

/* ---- Factors ---- */

static int value_order(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* sd-scripts' clamping: torch.quantile (linear between neighbours) of both factors' values together, then from -q to q. */
static bool clamp_factors(float *up, size_t up_count, float *down, size_t down_count, double quantile, error *err) {
    size_t count = up_count + down_count;
    float *all = memory_try_aligned(count * sizeof *all);
    if (!all) return error_set(err, "not enough memory to clamp the factors");
    memcpy(all, up, up_count * sizeof *all);
    memcpy(all + up_count, down, down_count * sizeof *all);
    qsort(all, count, sizeof *all, value_order);
    double at = quantile * (double)(count - 1);
    size_t low = (size_t)at, high = low + 1 < count ? low + 1 : low;
    float most = (float)(all[low] + (at - (double)low) * ((double)all[high] - all[low]));
    free(all);
    for (size_t i = 0; i < up_count; i++) up[i] = fminf(fmaxf(up[i], -most), most);
    for (size_t i = 0; i < down_count; i++) down[i] = fminf(fmaxf(down[i], -most), most);
    return true;
}

/* The ranks worth having: those with a singular value, and of them only as many as the share asks for. */
static int64_t chosen_rank(const svd *d, double energy) {
    double wanted = energy > 0 ? energy * d->norm * d->norm : INFINITY, sum = 0;
    int64_t rank = 0;
    while (rank < d->rank && d->s[rank] > 0 && sum < wanted) {
        sum += (double)d->s[rank] * d->s[rank];
        rank++;
    }
    return rank;
}

static bool add_lora(extraction *e, const module_info *m, const svd *d, int64_t rank, error *err) {
    const extract_options *o = e->options;
    float *up = memory_try_aligned((size_t)(d->m * rank) * sizeof *up), *down = memory_try_aligned((size_t)(rank * d->n) * sizeof *down);
    bool ok = (up && down) || error_set(err, "not enough memory for its factors");
    for (int64_t k = 0; ok && k < rank; k++) {
        float left = o->clamp > 0 ? d->s[k] : sqrtf(d->s[k]), right = o->clamp > 0 ? 1 : sqrtf(d->s[k]);
        for (int64_t i = 0; i < d->m; i++) up[i * rank + k] = d->u[i * d->rank + k] * left;
        for (int64_t j = 0; j < d->n; j++) down[k * d->n + j] = d->vt[k * d->n + j] * right;
        e->cut -= (double)d->s[k] * d->s[k];
    }
    e->cut += d->norm * d->norm;
    ok = ok && (!(o->clamp > 0) || clamp_factors(up, (size_t)(d->m * rank), down, (size_t)(rank * d->n), o->clamp, err));
    if (ok) {
        draft_put_lora(&e->lora, m, rank, (double)rank, up, down, o->type);
        return true;
    }
    free(up);
    free(down);
    return false;
}

static bool extract_module(extraction *e, const module_info *m, const checkpoint_tensor *tuned, error *err) {
    const extract_options *o = e->options;
    extract_report *r = e->report;
    int64_t most = m->kernel > 1 && o->conv_rank ? o->conv_rank : o->rank;
    float *values = difference_values(m->weight, tuned, err);
    svd d = {0};
    bool ok = values && svd_matrix(values, m->out, m->in * m->kernel * m->kernel, most, &d, err);
    free(values);
    int64_t rank = ok ? chosen_rank(&d, o->energy) : 0;
    if (ok && rank == 0) r->equal++; /* -0 instead of 0 */
    if (ok && rank > 0) {
        ok = add_lora(e, m, &d, rank, err);
        e->squares += d.norm * d.norm;
        r->modules[m->part]++;
        r->least_rank = !r->least_rank || rank < r->least_rank ? rank : r->least_rank;
        r->most_rank = rank > r->most_rank ? rank : r->most_rank;
    }
    svd_free(&d);
    return ok || error_prefix(err, "%s", m->flat);
}

/* A module in both models: their pages are given back at once, so that memory holds one module at a time. */
static bool visit_module(extraction *e, const module_info *m, error *err) {
    const checkpoint_tensor *tuned = difference_partner(e->tuned, m->part, m->weight);
    bool equal = difference_none(m->weight, tuned), ok = equal || extract_module(e, m, tuned, err);
    e->report->equal += equal;
    checkpoint_forget(e->base, m->weight);
    checkpoint_forget(e->tuned, tuned);
    return ok;
}

/* ---- What a LoRA cannot hold ---- */

static int loss_order(const void *a, const void *b) {
    const extract_loss *x = a, *y = b;
    return x->share != y->share ? (x->share < y->share) - (x->share > y->share) : strcmp(x->name, y->name);
}

static bool find_losses(extraction *e, checkpoint_part part, error *err) {
    const checkpoint_table *table = &e->base->parts[part];
    extract_report *r = e->report;
    for (size_t i = 0; i < table->count; i++) {
        const checkpoint_tensor *t = &table->tensors[i], *other = difference_partner(e->tuned, part, t);
        difference_size size;
        if (e->is_module[part][i] || difference_none(t, other)) continue;
        if (!difference_measure(t, other, &size, err)) return false;
        if (size.norm == 0) continue;
        r->losses = memory_grow(r->losses, (size_t)r->loss_count + 1, sizeof *r->losses);
        r->losses[r->loss_count++] = (extract_loss){part, memory_string(t->name), size.norm, size.norm / size.base_norm};
    }
    return true;
}

/* The VAE is no part of what a LoRA changes; another one is worth a word, though not a list. */
static void count_vae(extraction *e) {
    const checkpoint_table *table = &e->base->parts[CHECKPOINT_VAE];
    for (size_t i = 0; i < table->count; i++) {
        const checkpoint_tensor *other = checkpoint_find(e->tuned, CHECKPOINT_VAE, table->tensors[i].name);
        if (!other || other->elements != table->tensors[i].elements || !difference_none(&table->tensors[i], other))
            e->report->vae_tensors++;
    }
}

/* Whether any value of the text encoder differs by more than `least`. */
static bool text_encoder_counts(extraction *e, bool *counts, error *err) {
    *counts = e->options->least <= 0;
    for (int i = 0; !*counts && i < e->table->count; i++) {
        const module_info *m = &e->table->modules[i];
        difference_size size;
        if (m->part != CHECKPOINT_TEXT_ENCODER || m->kernel == 0) continue;
        if (!difference_measure(m->weight, difference_partner(e->tuned, m->part, m->weight), &size, err)) return false;
        *counts = size.largest > e->options->least;
    }
    e->report->text_encoder_left_out = !*counts;
    return true;
}

/* ---- The file ---- */

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* "32" and "32.0", or "Dynamic" where ranks differ from module to module, as sd-scripts' resize tool has it. */
static void rank_texts(const extraction *e, int64_t rank, char rank_text[32], char alpha_text[32]) {
    bool dynamic = e->options->energy > 0 || rank == 0;
    snprintf(rank_text, 32, "Dynamic");
    snprintf(alpha_text, 32, "Dynamic");
    if (dynamic) return;
    snprintf(rank_text, 32, "%" PRId64, rank);
    metadata_number((double)rank, alpha_text);
}

static bool write_file(extraction *e, const char *path, error *err) {
    char rank[32], alpha[32], args[128], *name = memory_string(base_name(path)), *dot = strrchr(name, '.');
    if (dot && dot != name) *dot = 0;
    const extract_options *o = e->options;
    rank_texts(e, o->conv_rank ? o->conv_rank : o->rank, rank, alpha);
    snprintf(args, sizeof args, "{\"conv_dim\": \"%s\", \"conv_alpha\": \"%s\"}", rank, alpha);
    rank_texts(e, o->rank, rank, alpha);
    char *comment = memory_format("difference of %s and %s", base_name(e->tuned->path), base_name(e->base->path));
    const safetensors_pair pairs[] = {{"ss_v2", "False"},
                                      {"ss_base_model_version", "sd_v1"},
                                      {"ss_network_module", "networks.lora"},
                                      {"ss_network_dim", rank},
                                      {"ss_network_alpha", alpha},
                                      {"ss_network_args", args},
                                      {"ss_sd_model_name", base_name(e->base->path)},
                                      {"ss_output_name", name},
                                      {"ss_training_comment", comment},
                                      {"modelspec.sai_model_spec", "1.0.1"},
                                      {"modelspec.architecture", "stable-diffusion-v1/lora"},
                                      {"modelspec.implementation", "diffusers"},
                                      {"modelspec.implementation_version", "vulora/" VULORA_VERSION},
                                      {"modelspec.title", name},
                                      {"modelspec.resolution", "512x512"},
                                      {"modelspec.prediction_type", "epsilon"}};
    spell_options s = {.format = SPELL_KOHYA, .type = o->type, .metadata = pairs, .metadata_count = sizeof pairs / sizeof *pairs};
    bool ok = spell_write(&e->lora, path, &s, err);
    free(name);
    free(comment);
    return ok;
}

/* ---- All of it ---- */

static bool extraction_open(extraction *e, error *err) {
    if (!difference_possible(e->base, e->tuned, CHECKPOINT_UNET, err) ||
        !difference_possible(e->base, e->tuned, CHECKPOINT_TEXT_ENCODER, err))
        return false;
    e->table = module_table_create(e->base, err);
    if (!e->table) return false;
    for (int p = 0; p < CHECKPOINT_PARTS; p++) e->is_module[p] = memory_new(e->base->parts[p].count + 1, sizeof(bool));
    for (int i = 0; i < e->table->count; i++) {
        const module_info *m = &e->table->modules[i];
        if (m->kernel > 0) e->is_module[m->part][m->weight - e->base->parts[m->part].tensors] = true;
    }
    return true;
}

static bool extract_modules(extraction *e, error *err) {
    bool text_encoder;
    if (!text_encoder_counts(e, &text_encoder, err)) return false;
    for (int i = 0; i < e->table->count; i++) {
        const module_info *m = &e->table->modules[i];
        if (m->kernel > 0 && (text_encoder || m->part != CHECKPOINT_TEXT_ENCODER) && !visit_module(e, m, err)) return false;
        if (e->options->progress) e->options->progress(e->options->user, i + 1, e->table->count);
    }
    if (e->lora.count == 0) return error_set(err, "%s and %s do not differ in anything a LoRA can hold", e->base->path, e->tuned->path);
    e->report->held = e->squares > 0 ? 1 - fmax(0, e->cut) / e->squares : 1;
    return find_losses(e, CHECKPOINT_UNET, err) && (!text_encoder || find_losses(e, CHECKPOINT_TEXT_ENCODER, err));
}

bool extract_lora(const checkpoint *base, const checkpoint *tuned, const char *path, const extract_options *o, extract_report *report,
                  error *err) {
    extraction e = {.base = base, .tuned = tuned, .options = o, .report = report};
    *report = (extract_report){0};
    bool ok = extraction_open(&e, err) && extract_modules(&e, err) && write_file(&e, path, err);
    if (ok) count_vae(&e);
    if (ok && report->loss_count) qsort(report->losses, (size_t)report->loss_count, sizeof *report->losses, loss_order);
    if (!ok) extract_report_free(report);
    draft_free(&e.lora);
    module_table_free(e.table);
    for (int p = 0; p < CHECKPOINT_PARTS; p++) free(e.is_module[p]);
    return ok;
}
