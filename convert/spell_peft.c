#include "convert/spell_peft.h"

#include "base/file.h"
#include "base/memory.h"
#include "lora/dora.h"
#include "lycoris/kinds.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The modules of one model. */
typedef struct side {
    draft_module **modules;
    int count;
    bool tucker;    /* of 3x3 convolutions */
    bool both;      /* LoKr: the first matrix is in factors too */
    int64_t factor; /* LoKr's decompose_factor */
    int64_t rank;   /* the commonest */
    double alpha;   /* the commonest */
} side;

typedef struct peft_kind {
    const adapter_kind *kind;
    const char *type, *alpha;
    bool (*fits)(side *s, draft_module *m, error *err); /* also brings the module into PEFT's form */
    void (*configure)(const side *s, json_t *config);
} peft_kind;

static bool refuse(const draft_module *m, error *err, const char *why) {
    return error_set(err, "module %s: PEFT cannot hold it: %s; make it a LoRA with --kind lora --rank N%s", m->info->flat, why,
                     m->kind->apply || draft_find(m, "dora_scale") ? " --model M" : "");
}

/* ---- Kinds ---- */

void spell_magnitude(const draft_module *m, draft_tensor *t) {
    int64_t out = m->info->out, dims[4] = {1, out, 1, 1};
    t->rank = m->info->convolution ? 4 : 1;
    if (t->rank == 1) dims[0] = out;
    memcpy(t->dims, dims, sizeof dims);
}

static bool lora_fits(side *s, draft_module *m, error *err) {
    draft_tensor *magnitude = draft_find(m, "dora_scale");
    if (draft_find(m, "lora_mid.weight"))
        return error_set(err, "module %s: PEFT's LoRA has no Tucker factors (lora_mid); --kind lora multiplies them out", m->info->flat);
    if (magnitude && !m->dora_on_output) return refuse(m, err, "its DoRA takes the norms of inputs, PEFT's those of outputs");
    if (!magnitude != !draft_find(s->modules[0], "dora_scale")) return refuse(m, err, "use_dora is one setting for all modules of a model");
    if (magnitude) spell_magnitude(m, magnitude);
    return true;
}

static void lora_configure(const side *s, json_t *config) {
    json_object_set_new(config, "use_dora", json_boolean(draft_find(s->modules[0], "dora_scale") != NULL));
    json_object_set_new(config, "use_rslora", json_false());
    json_object_set_new(config, "lora_dropout", json_real(0));
    json_object_set_new(config, "bias", json_string("none"));
    json_object_set_new(config, "fan_in_fan_out", json_false());
    json_object_set_new(config, "init_lora_weights", json_true());
}

/* use_effective_conv2d is one setting: convolutions with Tucker factors and without do not go together. */
static bool same_tucker(side *s, const draft_module *m, bool factored, bool tucker, error *err) {
    if (m->info->kernel == 1 || !factored) return true;
    for (int i = 0; i < s->count; i++) {
        const draft_module *other = s->modules[i];
        bool theirs = draft_find(other, "hada_t1") || draft_find(other, "lokr_t2");
        bool whole = draft_find(other, "lokr_w2") != NULL;
        if (other->info->kernel > 1 && !whole && theirs != tucker)
            return refuse(m, err, "Tucker factors are one setting for all convolutions of a model");
    }
    s->tucker = tucker;
    return true;
}

static bool loha_fits(side *s, draft_module *m, error *err) {
    if (draft_find(m, "dora_scale")) return refuse(m, err, "PEFT's LoHa has no DoRA");
    return same_tucker(s, m, true, draft_find(m, "hada_t1") != NULL, err);
}

static void loha_configure(const side *s, json_t *config) {
    json_object_set_new(config, "use_effective_conv2d", json_boolean(s->tucker));
    json_object_set_new(config, "rank_dropout", json_real(0));
    json_object_set_new(config, "module_dropout", json_real(0));
    json_object_set_new(config, "init_weights", json_true());
}

/* PEFT's factorization: as LyCORIS', but a factor that divides comes first though it may be the larger one. */
static void peft_factorize(int64_t dimension, int64_t factor, int64_t *first, int64_t *second) {
    adapter_factorize(dimension, factor, first, second);
    if (factor > 0 && dimension % factor == 0) *first = factor, *second = dimension / factor;
}

static int64_t rows_of(const draft_module *m, const char *part) { return draft_find(m, part)->dims[0]; }
static int64_t columns_of(const draft_module *m, const char *part) { return draft_find(m, part)->dims[1]; }

static bool factor_fits(const draft_module *m, int64_t factor) {
    int64_t l, k, c, n;
    peft_factorize(m->info->out, factor, &l, &k);
    peft_factorize(m->info->in, factor, &c, &n);
    bool whole = draft_find(m, "lokr_w1") != NULL;
    return rows_of(m, whole ? "lokr_w1" : "lokr_w1_a") == l && columns_of(m, whole ? "lokr_w1" : "lokr_w1_b") == c;
}

/* The setting from which PEFT gets the shapes of every module, if there is one. */
static bool find_factor(side *s, error *err) {
    const draft_module *bad = s->modules[0];
    for (int64_t factor = -1; factor <= 512; factor++) {
        int i = 0;
        while (factor != 0 && i < s->count && factor_fits(s->modules[i], factor)) i++;
        s->factor = factor;
        if (factor != 0 && i == s->count) return true;
        if (i > 0) bad = s->modules[i < s->count ? i : 0];
    }
    return refuse(bad, err, "no decompose_factor gives the sizes of all its Kronecker factors");
}

/* In PEFT the rank decides which of the matrices are in factors; a module without any gets one that leaves both whole. */
static bool lokr_fits(side *s, draft_module *m, error *err) {
    bool whole1 = draft_find(m, "lokr_w1") != NULL, whole2 = draft_find(m, "lokr_w2") != NULL;
    if (draft_find(m, "dora_scale")) return refuse(m, err, "PEFT's LoKr has no DoRA");
    if (!s->factor && !find_factor(s, err)) return false;
    for (int i = 0; i < s->count; i++) s->both = s->both || draft_find(s->modules[i], "lokr_w1_a");
    int64_t l, k, c, n;
    peft_factorize(m->info->out, s->factor, &l, &k);
    peft_factorize(m->info->in, s->factor, &c, &n);
    int64_t larger1 = l > c ? l : c, larger2 = k > n ? k : n;
    if (!m->rank) {
        m->rank = larger1 > larger2 ? larger1 : larger2;
        m->alpha = m->scale * (double)m->rank;
    }
    bool gives1 = !(s->both && 2 * m->rank < larger1), gives2 = 2 * m->rank >= larger2;
    if (gives1 != whole1 || gives2 != whole2) return refuse(m, err, "its rank would put other matrices in factors there");
    return same_tucker(s, m, !whole2, draft_find(m, "lokr_t2") != NULL, err);
}

static void lokr_configure(const side *s, json_t *config) {
    loha_configure(s, config);
    json_object_set_new(config, "decompose_both", json_boolean(s->both));
    json_object_set_new(config, "decompose_factor", json_integer(s->factor));
}

/* ia3_l is the multiplier itself, and PEFT multiplies outputs with their bias. */
static bool ia3_fits(side *s, draft_module *m, error *err) {
    (void)s;
    if (m->alpha == 0 && m->info->bias) return refuse(m, err, "PEFT's (IA)^3 scales the bias of outputs too");
    draft_tensor *t = draft_find(m, "weight");
    int64_t n = (int64_t)t->elements, dims[4] = {1, n, 1, 1};
    if (!m->info->convolution && m->alpha == 0) dims[0] = n, dims[1] = 1;
    t->rank = m->info->convolution ? 4 : 2;
    memcpy(t->dims, dims, sizeof dims);
    for (size_t i = 0; i < t->elements; i++) t->values[i] += 1;
    t->computed = true;
    return true;
}

/* transformers 5 has no level text_model in its text encoder, and PEFT finds tensors by the exact path. */
static const char *path_of(const draft_module *m) {
    static const char top[] = "text_model.";
    bool text = m->info->part == CHECKPOINT_TEXT_ENCODER && strncmp(m->info->name, top, strlen(top)) == 0;
    return m->info->name + (text ? strlen(top) : 0);
}

static void ia3_configure(const side *s, json_t *config) {
    json_t *inputs = json_array();
    for (int i = 0; i < s->count; i++) {
        if (s->modules[i]->alpha != 0) json_array_append_new(inputs, json_string(path_of(s->modules[i])));
    }
    json_object_set_new(config, "feedforward_modules", inputs);
    json_object_set_new(config, "fan_in_fan_out", json_false());
    json_object_set_new(config, "init_ia3_weights", json_true());
}

static const peft_kind KINDS[] = {{&adapter_kind_lora, "LORA", "lora_alpha", lora_fits, lora_configure},
                                  {&adapter_kind_loha, "LOHA", "alpha", loha_fits, loha_configure},
                                  {&adapter_kind_lokr, "LOKR", "alpha", lokr_fits, lokr_configure},
                                  {&adapter_kind_ia3, "IA3", NULL, ia3_fits, ia3_configure}};

static const peft_kind *peft_kind_of(const draft_module *m) {
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (KINDS[i].kind == m->kind) return &KINDS[i];
    return NULL;
}

/* ---- Configuration ---- */

static void commonest(side *s) {
    int best_rank = 0, best_alpha = 0;
    for (int i = 0; i < s->count; i++) {
        int ranks = 0, alphas = 0;
        for (int k = 0; k < s->count; k++) {
            ranks += s->modules[k]->rank == s->modules[i]->rank;
            alphas += s->modules[k]->alpha == s->modules[i]->alpha;
        }
        if (ranks > best_rank) best_rank = ranks, s->rank = s->modules[i]->rank;
        if (alphas > best_alpha) best_alpha = alphas, s->alpha = s->modules[i]->alpha;
    }
}

/* Whole numbers without a fraction, as PEFT's own files have them. */
static json_t *number_value(double value) {
    double shown = spell_number(value);
    return shown == floor(shown) && fabs(shown) < 1e15 ? json_integer((json_int_t)shown) : json_real(shown);
}

static json_t *config_value(side *s, const peft_kind *kind) {
    json_t *config = json_object(), *targets = json_array(), *ranks = json_object(), *alphas = json_object();
    if (kind->alpha) commonest(s);
    for (int i = 0; i < s->count; i++) {
        const draft_module *m = s->modules[i];
        const char *target = path_of(m);
        json_array_append_new(targets, json_string(target));
        if (kind->alpha && m->rank != s->rank) json_object_set_new(ranks, target, json_integer(m->rank));
        if (kind->alpha && m->alpha != s->alpha) json_object_set_new(alphas, target, number_value(m->alpha));
    }
    json_object_set_new(config, "peft_type", json_string(kind->type));
    json_object_set_new(config, "auto_mapping", json_null());
    json_object_set_new(config, "task_type", json_null());
    json_object_set_new(config, "base_model_name_or_path", json_null());
    json_object_set_new(config, "inference_mode", json_true());
    json_object_set_new(config, "modules_to_save", json_null());
    json_object_set_new(config, "target_modules", targets);
    if (kind->alpha) {
        json_object_set_new(config, "r", json_integer(s->rank));
        json_object_set_new(config, kind->alpha, number_value(s->alpha));
        json_object_set_new(config, "rank_pattern", ranks);
        json_object_set_new(config, "alpha_pattern", alphas);
    } else {
        json_decref(ranks);
        json_decref(alphas);
    }
    kind->configure(s, config);
    return config;
}

/* ---- Files ---- */

static const char *part_name(const char *part) {
    static const char *const names[][2] = {{"lora_down.weight", "lora_A.weight"},
                                           {"lora_up.weight", "lora_B.weight"},
                                           {"dora_scale", "lora_magnitude_vector"},
                                           {"weight", "ia3_l"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(part, names[i][0]) == 0) return names[i][1];
    return part;
}

static bool make_folder(const char *path, error *err) {
    if (mkdir(path, 0777) == 0 || (errno == EEXIST && file_is_directory(path))) return true;
    return error_set(err, "%s: cannot be made a folder: %s", path, strerror(errno));
}

static bool write_tensors(const side *s, const char *folder, const spell_options *o, error *err) {
    safetensors_writer w = {0};
    bool ok = true;
    for (int i = 0; ok && i < s->count; i++) {
        const draft_module *m = s->modules[i];
        for (int k = 0; ok && k < m->count; k++) {
            const draft_tensor *t = &m->tensors[k];
            ok = spell_add(&w, m, t, memory_format("base_model.model.%s.%s", path_of(m), part_name(t->part)), o->type, err);
        }
    }
    char *path = memory_format("%s/adapter_model.safetensors", folder);
    safetensors_writer_metadata(&w, "format", "pt");
    ok = ok && spell_finish(&w, path, o, err);
    safetensors_writer_free(&w);
    free(path);
    return ok;
}

static bool write_side(const char *folder, json_t *config, const side *s, const spell_options *o, error *err) {
    char *text = json_dumps(config, JSON_INDENT(2) | JSON_REAL_PRECISION(9)), *path = memory_format("%s/adapter_config.json", folder);
    bool ok = make_folder(folder, err) && write_tensors(s, folder, o, err);
    ok = ok && (text ? file_write_all(path, text, strlen(text), err) : error_set(err, "%s: a name is not valid UTF-8", path));
    free(text);
    free(path);
    return ok;
}

static bool prepare_side(side *s, json_t **config, error *err) {
    const peft_kind *kind = peft_kind_of(s->modules[0]);
    for (int i = 0; i < s->count; i++) {
        draft_module *m = s->modules[i];
        if (!peft_kind_of(m)) return refuse(m, err, m->kind == &adapter_kind_norm ? "it is a norm" : "of its kind there is nothing there");
        if (m->kind != kind->kind) return refuse(m, err, "all modules of a model must be of one kind");
        if (draft_find(m, "bias")) return refuse(m, err, "it has a residual beside its factors");
        if (!kind->fits(s, m, err)) return false;
    }
    *config = config_value(s, kind);
    return true;
}

/* The adapter has nothing for that model: another's left there would be taken for its own. */
static bool nothing_there(const char *path, const char *folder, error *err) {
    char *config = memory_format("%s/%s/adapter_config.json", path, folder);
    bool there = file_exists(config);
    free(config);
    return !there || error_set(err, "%s/%s: another adapter's folder is there, which this one would not replace; remove it", path, folder);
}

bool spell_peft(draft *d, const char *path, const spell_options *o, error *err) {
    static const struct {
        checkpoint_part part;
        const char *folder;
    } models[2] = {{CHECKPOINT_UNET, "unet"}, {CHECKPOINT_TEXT_ENCODER, "text_encoder"}};
    side sides[2] = {0};
    json_t *configs[2] = {0};
    bool ok = true;
    for (int p = 0; ok && p < 2; p++) {
        sides[p].modules = memory_new((size_t)d->count, sizeof *sides[p].modules);
        for (int i = 0; i < d->count; i++)
            if (d->modules[i].info->part == models[p].part) sides[p].modules[sides[p].count++] = &d->modules[i];
        ok = sides[p].count == 0 || prepare_side(&sides[p], &configs[p], err);
    }
    for (int p = 0; ok && p < 2; p++) ok = sides[p].count > 0 || nothing_there(path, models[p].folder, err);
    ok = ok && make_folder(path, err);
    for (int p = 0; p < 2; p++) {
        char *folder = memory_format("%s/%s", path, models[p].folder);
        ok = ok && (!configs[p] || write_side(folder, configs[p], &sides[p], o, err));
        json_decref(configs[p]);
        free(sides[p].modules);
        free(folder);
    }
    return ok;
}
