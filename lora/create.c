/* New adapters for training: which modules, which ranks. */
#include "lora/dora.h"

#include "base/memory.h"

#include <math.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>

/* ---- Targets (formats.md 2.4) ---- */

static bool in_attention(const module_info *m) {
    if (m->part == CHECKPOINT_TEXT_ENCODER) return strstr(m->name, ".self_attn.") != NULL;
    return strstr(m->name, ".attn1.to_") || strstr(m->name, ".attn2.to_");
}

static bool in_transformer(const module_info *m) { return m->part == CHECKPOINT_TEXT_ENCODER || strstr(m->name, "attentions."); }

static bool anywhere(const module_info *m) {
    (void)m;
    return true;
}

static const struct {
    const char *name;
    bool (*contains)(const module_info *m);
} TARGETS[] = {{"attn", in_attention}, {"attn-mlp", in_transformer}, {"full", anywhere}};

enum { TARGET_COUNT = sizeof TARGETS / sizeof *TARGETS };

typedef struct selection {
    bool (*contains)(const module_info *m); /* NULL: the expression */
    regex_t regex;
} selection;

static bool selection_open(selection *s, const char *targets, error *err) {
    *s = (selection){0};
    for (int i = 0; i < TARGET_COUNT; i++)
        if (strcmp(targets, TARGETS[i].name) == 0) s->contains = TARGETS[i].contains;
    if (s->contains) return true;
    int status = regcomp(&s->regex, targets, REG_EXTENDED | REG_NOSUB);
    if (status == 0) return true;
    char reason[128];
    regerror(status, &s->regex, reason, sizeof reason);
    return error_set(err, "--targets %s: neither attn, attn-mlp nor full, and no regular expression: %s", targets, reason);
}

static void selection_close(selection *s) {
    if (!s->contains) regfree(&s->regex);
}

/* An expression may count on the model's name in front ("unet.", "text_encoder.") or begin with the path. */
static bool selection_has(const selection *s, const module_info *m) {
    if (s->contains) return s->contains(m);
    char *full = memory_format("%s.%s", m->part == CHECKPOINT_UNET ? "unet" : "text_encoder", m->name);
    bool found = regexec(&s->regex, m->name, 0, NULL, 0) == 0 || regexec(&s->regex, full, 0, NULL, 0) == 0;
    free(full);
    return found;
}

/* ---- Making ---- */

static bool check_options(const adapter_options *o, error *err) {
    if (o->rank < 1) return error_set(err, "--rank %d: must be 1 or more", o->rank);
    if (o->conv_rank < 0) return error_set(err, "--conv-rank %d: must be 1 or more", o->conv_rank);
    if (!(o->alpha > 0) || !isfinite(o->alpha))
        return error_set(err, "--alpha %g: must be above 0 (0 means \"no effect\" to some programs and \"the rank\" to others)", o->alpha);
    if (o->conv_alpha < 0 || !isfinite(o->conv_alpha)) return error_set(err, "--conv-alpha %g: must be above 0", o->conv_alpha);
    return true;
}

/* Options that only some kinds have. */
static bool check_kind_options(const adapter_options *o, const adapter_trainee *t, error *err) {
    bool factored = t->kind->difference != NULL, lokr = strcmp(t->name, "lokr") == 0;
    bool turned = strcmp(t->name, "oft") == 0 || strcmp(t->name, "boft") == 0;
    const struct {
        const char *option;
        bool given, taken;
        const char *kinds;
    } rows[] = {{"dora", o->dora, factored, "lora, locon, loha and lokr"},
                {"tucker", o->tucker, factored, "lora, locon, loha and lokr"},
                {"factor", o->factor != 0, lokr, "lokr"},
                {"decompose-both", o->decompose_both, lokr, "lokr"},
                {"full-matrix", o->full_matrix, lokr, "lokr"},
                {"constraint", o->constraint != 0, turned, "oft and boft"},
                {"rescaled", o->rescaled, turned, "oft and boft"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].given && !rows[i].taken)
            return error_set(err, "--%s: only for the kinds %s, not %s", rows[i].option, rows[i].kinds, t->name);
    if (o->constraint < 0 || !isfinite(o->constraint)) return error_set(err, "--constraint %g: must be 0 (none) or more", o->constraint);
    return true;
}

/* Norms are for the kind that changes norms. webui applies some kinds to linear layers only, which a 1x1 convolution is not. */
static bool kind_takes(const adapter_kind *kind, const module_info *m) {
    if ((m->kernel == 0) != (kind->apply_norm != NULL)) return false;
    return !(kind->linear_only && m->convolution);
}

/* wanted: an array of a table's length. Returns how many; *left_out: those that only --text-encoder-lr would bring in. */
static int select_modules(const selection *s, const adapter_kind *kind, const module_table *table, bool text_encoder, bool *wanted,
                          int *left_out) {
    int count = 0;
    *left_out = 0;
    for (int i = 0; i < table->count; i++) {
        bool has = kind_takes(kind, &table->modules[i]) && selection_has(s, &table->modules[i]),
             trained = text_encoder || table->modules[i].part == CHECKPOINT_UNET;
        wanted[i] = has && trained;
        count += wanted[i];
        *left_out += has && !trained;
    }
    return count;
}

static bool init_modules(adapter *a, const adapter_options *o, const bool *wanted, error *err) {
    const module_table *table = a->table;
    for (int i = 0; i < table->count; i++) {
        if (!wanted[i]) continue;
        const module_info *info = &table->modules[i];
        bool conv = info->kernel > 1;
        adapter_module *m = &a->modules[a->module_count++];
        *m = (adapter_module){.kind = a->trainee->kind, .info = info};
        m->rank = conv && o->conv_rank > 0 ? o->conv_rank : o->rank;
        m->alpha = conv && o->conv_alpha > 0 ? o->conv_alpha : o->alpha;
        if (!m->kind->init(a, m, o, err) || (o->dora && !adapter_dora_init(a, m, err))) return false;
    }
    return true;
}

static bool has_large_kernel(const module_table *table, const bool *wanted) {
    for (int i = 0; i < table->count; i++)
        if (wanted[i] && table->modules[i].kernel > 1) return true;
    return false;
}

static bool check_selection(const adapter_options *o, const char *targets, const module_table *table, const bool *wanted, int count,
                            int left_out, error *err) {
    if (count == 0 && left_out > 0)
        return error_set(err, "--targets %s: fits only modules of the text encoder, which is not trained; give --text-encoder-lr", targets);
    if (count == 0)
        return error_set(err, "--targets %s: fits none of the model's %d modules that --kind %s can change (one of all is called %s)",
                         targets, table->count, o->kind ? o->kind : "lora", table->count ? table->modules[table->count / 2].name : "-");
    if ((o->conv_rank > 0 || o->conv_alpha > 0) && !has_large_kernel(table, wanted))
        return error_set(err, "--conv-rank, --conv-alpha: there is no 3x3 convolution among --targets %s; use --targets full", targets);
    return true;
}

adapter *adapter_create(const adapter_options *o, const module_table *table, device *d, error *err) {
    const adapter_trainee *trainee = adapter_trainee_find(o->kind ? o->kind : "lora");
    if (!trainee) {
        error_set(err, "--kind %s: there is no such kind of adapter", o->kind);
        return NULL;
    }
    const char *targets = o->targets ? o->targets : o->conv_rank > 0 ? "full" : trainee->targets;
    selection s;
    if (!check_options(o, err) || !check_kind_options(o, trainee, err) || !selection_open(&s, targets, err)) return NULL;
    int left_out;
    bool *wanted = memory_new((size_t)table->count, sizeof *wanted);
    int count = select_modules(&s, trainee->kind, table, o->train_text_encoder, wanted, &left_out);
    selection_close(&s);
    adapter *a = NULL;
    if (check_selection(o, targets, table, wanted, count, left_out, err)) {
        a = memory_new(1, sizeof *a);
        *a = (adapter){.device = d,
                       .trainable = true,
                       .trainee = trainee,
                       .table = table,
                       .pool = tensor_pool_create(d),
                       .gradients = tensor_pool_create(d)};
        a->modules = memory_new((size_t)count, sizeof *a->modules);
        if (!init_modules(a, o, wanted, err)) {
            adapter_free(a);
            a = NULL;
        }
    }
    free(wanted);
    return a;
}
