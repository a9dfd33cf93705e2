/* New adapters for training: which modules, which ranks. */
#include "lora/dora.h"

#include "base/memory.h"
#include "lora/parts.h"
#include "lora/settings.h"

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

static bool without_kernel(const module_info *m) { return m->kernel <= 1; }
static bool in_unet(const module_info *m) { return m->part == CHECKPOINT_UNET; }
static bool in_unet_transformer(const module_info *m) { return in_unet(m) && in_transformer(m); }
static bool in_block(const module_info *m) { return !in_unet(m) || module_block(m) >= 0; }

static bool in_unet_convolutions(const module_info *m) {
    return in_unet(m) && (strstr(m->name, "resnets.") || strstr(m->name, "samplers.") || strncmp(m->name, "conv_", 5) == 0);
}

/* Most are LyCORIS' presets; `blocks` is what sd-scripts trains with a conv_dim. */
static const struct {
    const char *name;
    bool (*contains)(const module_info *m); /* NULL: */
    const char *regex;
} TARGETS[] = {{"attn", in_attention, NULL},
               {"attn-only", in_attention, NULL},
               {"attn-mlp", in_transformer, NULL},
               {"full", anywhere, NULL},
               {"full-lin", without_kernel, NULL},
               {"blocks", in_block, NULL},
               {"unet-only", in_unet, NULL},
               {"unet-transformer-only", in_unet_transformer, NULL},
               {"unet-convblock-only", in_unet_convolutions, NULL},
               /* The paper's layers. */
               {"ia3", NULL, "(\\.to_k|\\.to_v|\\.ff\\.net\\.2|\\.k_proj|\\.v_proj|\\.mlp\\.fc2)$"}};

enum { TARGET_COUNT = sizeof TARGETS / sizeof *TARGETS };

const char *adapter_targets_at(int index) { return index < TARGET_COUNT ? TARGETS[index].name : NULL; }

typedef struct selection {
    bool (*contains)(const module_info *m); /* NULL: the expression */
    regex_t regex;
} selection;

static bool selection_open(selection *s, const char *targets, error *err) {
    *s = (selection){0};
    const char *regex = targets;
    for (int i = 0; i < TARGET_COUNT; i++)
        if (strcmp(targets, TARGETS[i].name) == 0) s->contains = TARGETS[i].contains, regex = TARGETS[i].regex;
    if (s->contains) return true;
    int status = regcomp(&s->regex, regex, REG_EXTENDED | REG_NOSUB);
    if (status == 0) return true;
    char reason[128];
    regerror(status, &s->regex, reason, sizeof reason);
    return error_set(err, "--targets %s: neither a set's name (attn, attn-mlp, full, ...) nor a regular expression: %s", targets, reason);
}

static void selection_close(selection *s) {
    if (!s->contains) regfree(&s->regex);
}

static bool selection_has(const selection *s, const module_info *m) { return s->contains ? s->contains(m) : module_matches(&s->regex, m); }

/* ---- Beginning ---- */

static const char *const INITS[ADAPTER_INIT_COUNT] = {
    [ADAPTER_INIT_DEFAULT] = "kaiming", [ADAPTER_INIT_NORMAL] = "normal", [ADAPTER_INIT_PISSA] = "pissa"};

const char *adapter_init_at(int index) { return index < ADAPTER_INIT_COUNT ? INITS[index] : NULL; }

/* ---- Making ---- */

static bool check_options(const adapter_options *o, error *err) {
    if (o->rank < 1) return error_set(err, "--rank %d: must be 1 or more", o->rank);
    if (o->conv_rank < 0) return error_set(err, "--conv-rank %d: must be 1 or more", o->conv_rank);
    if (!(o->alpha > 0) || !isfinite(o->alpha))
        return error_set(err, "--alpha %g: must be above 0 (0 means \"no effect\" to some programs and \"the rank\" to others)", o->alpha);
    if (o->conv_alpha < 0 || !isfinite(o->conv_alpha)) return error_set(err, "--conv-alpha %g: must be above 0", o->conv_alpha);
    return true;
}

static bool check_stepwise(const adapter_stepwise *s, error *err) {
    const struct {
        const char *option;
        double rate;
    } rates[] = {{"network-dropout", s->network_dropout}, {"rank-dropout", s->rank_dropout}, {"module-dropout", s->module_dropout}};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++)
        if (!(rates[i].rate >= 0 && rates[i].rate < 1))
            return error_set(err, "--%s %g: must be 0 (none) or more, and below 1", rates[i].option, rates[i].rate);
    if (s->block_size < 0) return error_set(err, "--block-size %d: must be 1 or more", s->block_size);
    if (!(s->max_norm >= 0) || !isfinite(s->max_norm)) return error_set(err, "--scale-weight-norms %g: must be above 0", s->max_norm);
    return true;
}

/* Options that only some kinds have. */
static bool check_kind_options(const adapter_options *o, const adapter_trainee *t, error *err) {
    bool dylora = strcmp(t->name, "dylora") == 0, lora = t->kind == &adapter_kind_lora, norm = t->kind->apply_norm != NULL;
    bool rows_dropped = t->kind->branch != NULL && !dylora; /* of LoRA, ranks */
    bool factored = t->kind->difference != NULL && !dylora, lokr = strcmp(t->name, "lokr") == 0;
    bool turned = strcmp(t->name, "oft") == 0 || strcmp(t->name, "boft") == 0;
    const struct {
        const char *option;
        bool given, taken;
        const char *kinds;
    } rows[] = {{"dora", o->dora, factored, "lora, locon, loha and lokr"},
                {"rs-lora", o->rank_stabilised, factored, "lora, locon, loha and lokr"},
                {"use-scalar", o->trained_scalar, t->kind->scaled != 0 && !dylora, "lora, locon, loha, lokr and glora"},
                {"init", o->init != ADAPTER_INIT_DEFAULT, lora, "lora and locon"},
                {"loraplus-lr-ratio", o->up_ratio[CHECKPOINT_UNET] > 0 || o->up_ratio[CHECKPOINT_TEXT_ENCODER] > 0, lora,
                 "lora and locon (no other has the factor whose rate it sets)"},
                {"tucker", o->tucker, factored, "lora, locon, loha and lokr"},
                {"factor", o->factor != 0, lokr, "lokr"},
                {"decompose-both", o->decompose_both, lokr, "lokr"},
                {"full-matrix", o->full_matrix, lokr, "lokr"},
                {"constraint", o->constraint != 0, turned, "oft and boft"},
                {"rescaled", o->rescaled, turned, "oft and boft"},
                {"block-size", o->stepwise.block_size != 0, dylora, "dylora"},
                {"network-dropout", o->stepwise.network_dropout > 0, lora && !dylora, "lora and locon"},
                {"rank-dropout", o->stepwise.rank_dropout > 0, rows_dropped, "lora, locon, loha, lokr and full"},
                {"module-dropout", o->stepwise.module_dropout > 0, !norm, "that change layers"},
                {"scale-weight-norms", o->stepwise.max_norm > 0, t->kind->difference != NULL, "lora, locon, dylora, loha and lokr"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].given && !rows[i].taken)
            return error_set(err, "--%s: only for the kinds %s, not %s", rows[i].option, rows[i].kinds, t->name);
    if (o->dora && (o->stepwise.network_dropout > 0 || o->stepwise.rank_dropout > 0))
        return error_set(err, "--dora: goes with --module-dropout only, not with --network-dropout and --rank-dropout");
    if (o->init == ADAPTER_INIT_PISSA &&
        (o->tucker || o->trained_scalar || o->stepwise.max_norm > 0 || o->stepwise.module_dropout > 0 || dylora))
        return error_set(err, "--init pissa: not with --tucker, --use-scalar, --scale-weight-norms, --module-dropout or --kind dylora");
    if (o->rank > ADAPTER_MOST_RANK && !lokr)
        return error_set(err, "--rank %d: goes up to %d; only with --kind lokr more may be said, which means full matrices", o->rank,
                         ADAPTER_MOST_RANK);
    if (o->constraint < 0 || !isfinite(o->constraint)) return error_set(err, "--constraint %g: must be 0 (none) or more", o->constraint);
    return true;
}

/* webui finds neither of these norms under its diffusers name (formats.md 2.3). */
static bool norm_is_reachable(const module_info *m) { return !strstr(m->name, "conv_norm_out") && !strstr(m->name, "final_layer_norm"); }

/* Norms are for the kind that changes norms. webui applies some kinds to linear layers only, which a 1x1 convolution is not. */
static bool kind_takes(const adapter_kind *kind, const module_info *m) {
    if ((m->kernel == 0) != (kind->apply_norm != NULL)) return false;
    return m->kernel == 0 ? norm_is_reachable(m) : !(kind->linear_only && m->convolution);
}

static const adapter_kind *norm_kind(void) { return adapter_trainee_find("norm")->kind; }

/* wanted: an array of a table's length. Returns how many; *left_out: those that only --text-encoder-lr would bring in. */
static int select_modules(const selection *s, const module_settings *settings, const adapter_kind *kind, const module_table *table,
                          bool text_encoder, bool *wanted, int *left_out) {
    int count = 0;
    *left_out = 0;
    for (int i = 0; i < table->count; i++) {
        bool has = kind_takes(kind, &table->modules[i]) && selection_has(s, &table->modules[i]),
             trained = text_encoder || table->modules[i].part == CHECKPOINT_UNET;
        module_setting own = module_settings_of(settings, &table->modules[i]);
        has = has && own.rank > 0 && own.rate > 0;
        wanted[i] = has && trained;
        count += wanted[i];
        *left_out += has && !trained;
    }
    return count;
}

/* Adds the U-Net's norms, which is where LyCORIS trains them: those of the targets, or all where the targets have none. Returns how many.
 */
static int select_norms(const selection *s, const module_settings *settings, const module_table *table, bool *wanted) {
    int count = 0;
    for (int pass = 0; pass < 2 && count == 0; pass++)
        for (int i = 0; i < table->count; i++) {
            const module_info *m = &table->modules[i];
            if (m->part != CHECKPOINT_UNET || !kind_takes(norm_kind(), m) || (pass == 0 && !selection_has(s, m))) continue;
            if (module_settings_of(settings, m).rate <= 0) continue;
            wanted[i] = true;
            count++;
        }
    return count;
}

/* LoRA+ (Hayou et al. 2024) as LyCORIS and sd-scripts have it: what is called lora_up has a rate of its own. */
static void set_rates(adapter_module *m, const adapter_options *o, double rate) {
    double ratio = o->up_ratio[m->info->part];
    for (int i = 0; i < ADAPTER_MODULE_TENSORS; i++) {
        adapter_tensor *t = &m->tensors[i];
        if (t->value) t->rate = (float)(ratio > 0 && strstr(t->name, ".lora_up") ? rate * ratio : rate);
    }
}

static bool init_modules(adapter *a, const adapter_options *o, const module_settings *settings, const bool *wanted, error *err) {
    const module_table *table = a->table;
    for (int i = 0; i < table->count; i++) {
        if (!wanted[i]) continue;
        const module_info *info = &table->modules[i];
        adapter_module *m = &a->modules[a->module_count++];
        *m = (adapter_module){.kind = info->kernel == 0 ? norm_kind() : a->trainee->kind, .info = info};
        module_setting own = module_settings_of(settings, info);
        bool layer = info->kernel > 0;
        m->rank = own.rank;
        m->alpha = own.alpha;
        /* alpha / sqrt(rank) is what readers make of this as alpha / rank. */
        if (o->rank_stabilised) m->asked_alpha = own.alpha, m->alpha = own.alpha * sqrt((double)own.rank);
        if (!m->kind->init(a, m, o, err) || (o->trained_scalar && layer && !part_new_scalar(a, m, err)) ||
            (o->dora && layer && !adapter_dora_init(a, m, err)))
            return false;
        set_rates(m, o, own.rate);
    }
    return true;
}

static bool has_large_kernel(const module_table *table, const bool *wanted) {
    for (int i = 0; i < table->count; i++)
        if (wanted[i] && table->modules[i].kernel > 1) return true;
    return false;
}

static bool has_own_settings(const adapter_options *o) {
    return o->module_rank.count || o->module_lr.count || o->block_dims || o->conv_block_dims || o->down_lr_weight || o->mid_lr_weight ||
           o->up_lr_weight;
}

static bool check_selection(const adapter_options *o, const char *targets, const module_table *table, const bool *wanted, int count,
                            int left_out, error *err) {
    if (count == 0 && left_out > 0 && !has_own_settings(o))
        return error_set(err, "--targets %s: fits only modules of the text encoder, which is not trained; give --text-encoder-lr", targets);
    if (count == 0 && has_own_settings(o))
        return error_set(
            err, "--targets %s: no module is left after the ranks and learning rates of 0 (by block, --module-rank, --module-lr)", targets);
    if (count == 0)
        return error_set(err, "--targets %s: fits none of the model's %d modules that --kind %s can change (one of all is called %s)",
                         targets, table->count, o->kind ? o->kind : "lora", table->count ? table->modules[table->count / 2].name : "-");
    if ((o->conv_rank > 0 || o->conv_alpha > 0 || o->conv_block_dims) && !o->conv_optional && !has_large_kernel(table, wanted))
        return error_set(err, "--conv-rank, --conv-alpha: there is no 3x3 convolution among --targets %s; use --targets full", targets);
    return true;
}

adapter *adapter_create(const adapter_options *o, const module_table *table, device *d, error *err) {
    const adapter_trainee *trainee = adapter_trainee_find(o->kind ? o->kind : "lora");
    if (!trainee) {
        error_set(err, "--kind %s: there is no such kind of adapter", o->kind);
        return NULL;
    }
    const char *targets = o->targets ? o->targets : o->conv_rank > 0 || o->conv_block_dims ? "full" : trainee->targets;
    selection s;
    if (!check_options(o, err) || !check_stepwise(&o->stepwise, err) || !check_kind_options(o, trainee, err)) return NULL;
    module_settings *settings = module_settings_create(o, err);
    if (!settings || !selection_open(&s, targets, err)) {
        module_settings_free(settings);
        return NULL;
    }
    int left_out;
    bool *wanted = memory_new((size_t)table->count, sizeof *wanted);
    int count = select_modules(&s, settings, trainee->kind, table, o->train_text_encoder, wanted, &left_out);
    int norms = o->train_norm && trainee->kind != norm_kind() ? select_norms(&s, settings, table, wanted) : 0;
    selection_close(&s);
    adapter *a = NULL;
    if (check_selection(o, targets, table, wanted, count, left_out, err)) {
        a = memory_new(1, sizeof *a);
        *a = (adapter){.device = d,
                       .trainable = true,
                       .trainee = trainee,
                       .table = table,
                       .stepwise = o->stepwise,
                       .seed = o->seed,
                       .pool = tensor_pool_create(d),
                       .gradients = tensor_pool_create(d)};
        if (strcmp(trainee->name, "dylora") == 0 && !a->stepwise.block_size) a->stepwise.block_size = DYLORA_BLOCK_SIZE;
        a->modules = memory_new((size_t)(count + norms), sizeof *a->modules);
        if (!init_modules(a, o, settings, wanted, err)) {
            adapter_free(a);
            a = NULL;
        }
    }
    module_settings_free(settings);
    free(wanted);
    return a;
}
