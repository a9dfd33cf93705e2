/* New adapters for training: which modules, which ranks. */
#include "lora/kind.h"

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

/* wanted: an array of a table's length. Returns how many; *left_out: those that only --text-encoder-lr would bring in. */
static int select_modules(const selection *s, const module_table *table, bool text_encoder, bool *wanted, int *left_out) {
    int count = 0;
    *left_out = 0;
    for (int i = 0; i < table->count; i++) {
        bool has = selection_has(s, &table->modules[i]), trained = text_encoder || table->modules[i].part == CHECKPOINT_UNET;
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
        *m = (adapter_module){.kind = &adapter_kind_lora, .info = info};
        m->rank = conv && o->conv_rank > 0 ? o->conv_rank : o->rank;
        m->alpha = conv && o->conv_alpha > 0 ? o->conv_alpha : o->alpha;
        if (!m->kind->init(a, m, o->seed, err)) return false;
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
        return error_set(err, "--targets %s: fits none of the model's %d modules (one is called %s)", targets, table->count,
                         table->count ? table->modules[table->count / 2].name : "-");
    if ((o->conv_rank > 0 || o->conv_alpha > 0) && !has_large_kernel(table, wanted))
        return error_set(err, "--conv-rank, --conv-alpha: there is no 3x3 convolution among --targets %s; use --targets full", targets);
    return true;
}

adapter *adapter_create(const adapter_options *o, const module_table *table, device *d, error *err) {
    const char *targets = o->targets ? o->targets : o->kind == ADAPTER_TRAIN_LOCON || o->conv_rank > 0 ? "full" : "attn-mlp";
    selection s;
    if (!check_options(o, err) || !selection_open(&s, targets, err)) return NULL;
    int left_out;
    bool *wanted = memory_new((size_t)table->count, sizeof *wanted);
    int count = select_modules(&s, table, o->train_text_encoder, wanted, &left_out);
    selection_close(&s);
    adapter *a = NULL;
    if (check_selection(o, targets, table, wanted, count, left_out, err)) {
        a = memory_new(1, sizeof *a);
        *a = (adapter){.device = d, .trainable = true, .table = table, .pool = tensor_pool_create(d), .gradients = tensor_pool_create(d)};
        a->modules = memory_new((size_t)count, sizeof *a->modules);
        if (!init_modules(a, o, wanted, err)) {
            adapter_free(a);
            a = NULL;
        }
    }
    free(wanted);
    return a;
}
