#include "cli/network_args.h"

#include "cli/nearest.h"
#include "lora/adapter.h"

#include <stdio.h>
#include <string.h>

enum { LORA = 1 << 0, DYLORA = 1 << 1, LYCORIS = 1 << 2, ANY = LORA | DYLORA | LYCORIS };

/* ---- modules ---- */

static const struct network {
    const char *module;
    unsigned bit;        /* 0: refused, */
    const char *refusal; /* because */
} NETWORKS[] = {
    {"networks.lora", LORA, NULL},
    {"networks.dylora", DYLORA, NULL},
    {"lycoris.kohya", LYCORIS, NULL},
    {"networks.lora_fa", 0, "LoRA-FA trains one of the two factors only, which vulora does not; networks.lora is the nearest"},
    {"networks.oft", 0,
     "kohya's OFT cuts a layer into --network_dim blocks, vulora trains LyCORIS' diag-oft, whose blocks are others: give --kind oft"},
};
enum { NETWORK_COUNT = sizeof NETWORKS / sizeof *NETWORKS };

static bool find_network(const char *module, unsigned *bit, error *err) {
    *bit = ANY;
    if (!module) return true;
    nearest search = nearest_begin(module);
    for (int i = 0; i < NETWORK_COUNT; i++) {
        nearest_try(&search, NETWORKS[i].module, NETWORKS[i].module);
        if (strcmp(NETWORKS[i].module, module) != 0) continue;
        *bit = NETWORKS[i].bit;
        return *bit || error_set(err, "--network-module %s: %s", module, NETWORKS[i].refusal);
    }
    return error_set(err, "--network-module %.100s: unknown; %s%s%s", module, search.best ? "did you mean " : "known: networks.lora, ",
                     search.best ? search.best : "networks.dylora, lycoris.kohya", search.best ? "?" : "");
}

/* ---- keys ---- */

typedef enum conversion {
    AS_IT_IS,
    SWITCH,    /* true, false and their kin */
    ALGORITHM, /* LyCORIS' name of a kind */
    PRESET,    /* a set of modules */
    NORM_AXIS, /* wd_on_output */
    IGNORED,   /* changes nothing here */
    REFUSED
} conversion;

static const struct network_key {
    const char *key;
    unsigned networks; /* that know it */
    conversion conversion;
    const char *option; /* that it stands for; of REFUSED: why */
} KEYS[] = {
    {"algo", LYCORIS, ALGORITHM, "kind"},
    {"preset", LYCORIS, PRESET, "targets"},
    {"conv_dim", ANY, AS_IT_IS, "conv-rank"},
    {"conv_alpha", ANY, AS_IT_IS, "conv-alpha"},
    {"dropout", LORA | LYCORIS, AS_IT_IS, "network-dropout"},
    {"rank_dropout", LORA | LYCORIS, AS_IT_IS, "rank-dropout"},
    {"module_dropout", LORA | LYCORIS, AS_IT_IS, "module-dropout"},
    {"rank_dropout_scale", LYCORIS, SWITCH, "rank-dropout-scale"},
    {"loraplus_lr_ratio", ANY, AS_IT_IS, "loraplus-lr-ratio"},
    {"loraplus_unet_lr_ratio", ANY, AS_IT_IS, "loraplus-unet-lr-ratio"},
    {"loraplus_text_encoder_lr_ratio", ANY, AS_IT_IS, "loraplus-text-encoder-lr-ratio"},
    {"block_dims", LORA, AS_IT_IS, "block-dims"},
    {"block_alphas", LORA, AS_IT_IS, "block-alphas"},
    {"conv_block_dims", LORA, AS_IT_IS, "conv-block-dims"},
    {"conv_block_alphas", LORA, AS_IT_IS, "conv-block-alphas"},
    {"down_lr_weight", LORA, AS_IT_IS, "down-lr-weight"},
    {"mid_lr_weight", LORA, AS_IT_IS, "mid-lr-weight"},
    {"up_lr_weight", LORA, AS_IT_IS, "up-lr-weight"},
    {"block_lr_zero_threshold", LORA, AS_IT_IS, "block-lr-zero-threshold"},
    {"unit", DYLORA, AS_IT_IS, "block-size"},
    {"block_size", LYCORIS, AS_IT_IS, "block-size"},
    {"factor", LYCORIS, AS_IT_IS, "factor"},
    {"decompose_both", LYCORIS, SWITCH, "decompose-both"},
    {"full_matrix", LYCORIS, SWITCH, "full-matrix"},
    {"unbalanced_factorization", LYCORIS, REFUSED, "vulora's LoKr has LyCORIS' usual factorization only"},
    {"use_tucker", LYCORIS, SWITCH, "tucker"},
    {"use_cp", LYCORIS, SWITCH, "tucker"},
    {"use_conv_cp", LYCORIS, SWITCH, "tucker"},
    {"disable_conv_cp", LYCORIS, REFUSED,
     "LyCORIS' versions disagree on whether it turns Tucker factors off or on; write use_tucker=False or use_tucker=True"},
    {"dora_wd", LYCORIS, SWITCH, "dora"},
    {"wd_on_output", LYCORIS, NORM_AXIS, NULL},
    {"use_scalar", LYCORIS, SWITCH, "use-scalar"},
    {"rs_lora", LYCORIS, SWITCH, "rs-lora"},
    {"train_norm", LYCORIS, SWITCH, "train-norm"},
    {"constraint", LYCORIS, AS_IT_IS, "constraint"},
    {"constrain", LYCORIS, AS_IT_IS, "constraint"},
    {"rescaled", LYCORIS, SWITCH, "rescaled"},
    {"bypass_mode", LYCORIS, IGNORED, NULL},
    {"train_on_input", LYCORIS, IGNORED, NULL}, /* LyCORIS' preset ia3 decides it */
    {"train_t5xxl", LYCORIS, IGNORED, NULL},
    {"train_llm_adapter", LYCORIS, IGNORED, NULL},
};
enum { KEY_COUNT = sizeof KEYS / sizeof *KEYS };

/* LyCORIS' names that are not in the table of kinds under themselves or as an algorithm. */
static const char *kind_of_algorithm(const char *algorithm) {
    const adapter_trainee *t;
    if (strcmp(algorithm, "lora") == 0) return "locon"; /* one class there, and convolutions by default */
    for (int i = 0; (t = adapter_trainee_at(i)); i++)
        if (strcmp(t->algorithm ? t->algorithm : t->name, algorithm) == 0 || strcmp(t->name, algorithm) == 0) return t->name;
    return NULL;
}

typedef struct reading {
    options *options;
    unsigned network;
    bool norms_of_inputs; /* wd_on_output=False was said */
} reading;

static void remark(options *o, const char *text) { options_list_add(&o->remarks, text); }

/* Sets an option that the command line leaves open. what: names the word in messages. */
static bool set(reading *r, const char *what, const char *name, const char *value, error *err) {
    if (!option_find(name, r->options->command->bit)) return error_set(err, "%s: this version has no --%s", what, name);
    return options_given(r->options, name) || options_set(r->options, what, name, value, err);
}

static bool read_switch(const char *what, const char *text, const char **value, error *err) {
    static const char *const words[][2] = {{"true", "false"}, {"yes", "no"}, {"on", "off"}, {"1", "0"}};
    for (int i = 0; i < 4; i++)
        for (int off = 0; off < 2; off++)
            if (nearest_distance(text, words[i][off]) == 0) {
                *value = off ? "0" : "1";
                return true;
            }
    return error_set(err, "%s: '%.100s' is neither True nor False", what, text);
}

static bool read_algorithm(const char *what, const char *text, const char **value, error *err) {
    if ((*value = kind_of_algorithm(text))) return true;
    nearest search = nearest_begin(text);
    const adapter_trainee *t;
    char known[256] = "lora";
    for (int i = 0; (t = adapter_trainee_at(i)); i++) {
        const char *name = t->algorithm ? t->algorithm : t->name;
        nearest_try(&search, name, name);
        if (strcmp(name, "lora") != 0) snprintf(known + strlen(known), sizeof known - strlen(known), ", %s", name);
    }
    return search.best ? error_set(err, "%s: unknown value '%.100s'; did you mean %s? Known: %s", what, text, search.best, known)
                       : error_set(err, "%s: unknown value '%.100s'; known: %s", what, text, known);
}

static bool read_preset(const char *what, const char *text, const char **value, error *err) {
    const char *name;
    nearest search = nearest_begin(text);
    for (int i = 0; (name = adapter_targets_at(i)); i++) {
        nearest_try(&search, name, name);
        if (strcmp(name, text) != 0) continue;
        *value = name;
        return true;
    }
    if (search.best) return error_set(err, "%s: unknown value '%.100s'; did you mean %s?", what, text, search.best);
    return error_set(err,
                     "%s: '%.100s' is no preset of LyCORIS, and preset files are not read; --targets, --module-rank and --module-lr say "
                     "the same by expressions",
                     what, text);
}

static const struct network_key *find_key(const char *name, size_t length) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (strlen(KEYS[i].key) == length && strncmp(KEYS[i].key, name, length) == 0) return &KEYS[i];
    return NULL;
}

static bool refuse_key(const reading *r, const char *name, error *err) {
    nearest search = nearest_begin(name);
    for (int i = 0; i < KEY_COUNT; i++)
        if (KEYS[i].networks & r->network) nearest_try(&search, KEYS[i].key, KEYS[i].key);
    const char *module = r->options->network_module ? r->options->network_module : "sd-scripts";
    return search.best ? error_set(err, "--network-args: unknown key %.100s; did you mean %s?", name, search.best)
                       : error_set(err, "--network-args: unknown key %.100s; %s has none that is called so", name, module);
}

/* word: "KEY=VALUE". None and an empty value are Python's way to say nothing. */
static bool read_word(reading *r, const char *word, error *err) {
    const char *equals = strchr(word, '='), *value = equals ? equals + 1 : NULL;
    char name[64], what[96];
    snprintf(name, sizeof name, "%.*s", (int)(equals ? equals - word : (long)strlen(word)), word);
    if (!equals || equals == word) return error_set(err, "--network-args: '%.100s' is not of the form KEY=VALUE", word);
    snprintf(what, sizeof what, "--network-args %s", name);
    const struct network_key *k = find_key(word, (size_t)(equals - word));
    if (!k) return refuse_key(r, name, err);
    if (!(k->networks & r->network)) return error_set(err, "%s: %s has no such argument", what, r->options->network_module);
    if (!*value || strcmp(value, "None") == 0) return true;
    switch (k->conversion) {
    case AS_IT_IS:
        if (strcmp(name, "factor") == 0 && strcmp(value, "-1") == 0) return true; /* the usual one, said with any algorithm */
        break;
    case SWITCH:
        if (!read_switch(what, value, &value, err)) return false;
        if (value[0] == '0' && !option_find(k->option, r->options->command->bit)) return true;
        break;
    case ALGORITHM:
        if (!read_algorithm(what, value, &value, err)) return false;
        break;
    case PRESET:
        if (!read_preset(what, value, &value, err)) return false;
        break;
    case NORM_AXIS:
        if (!read_switch(what, value, &value, err)) return false;
        r->norms_of_inputs = value[0] == '0';
        return true;
    case IGNORED: return read_switch(what, value, &value, err);
    case REFUSED:
        if (!read_switch(what, value, &value, err)) return false;
        return value[0] == '0' || error_set(err, "%s: %s", what, k->option);
    }
    return set(r, what, k->option, value, err);
}

/* ---- what a module takes when it is told nothing ---- */

static bool defaults_of_all(reading *r, error *err) {
    options *o = r->options;
    if (!options_given(o, "rank")) {
        remark(o, "--network_dim is not given: 4, as in sd-scripts");
        if (!set(r, "--network-module", "rank", "4", err)) return false;
    }
    if (!options_given(o, "alpha")) {
        remark(o, "--network_alpha is not given: 1, as in sd-scripts");
        if (!set(r, "--network-module", "alpha", "1", err)) return false;
    }
    if (!options_given(o, "text-encoder-lr") && o->unet_only != 1)
        remark(o, "sd-scripts would train the text encoder too; here --text-encoder-lr X does");
    return true;
}

static bool defaults_of_lora(reading *r, error *err) {
    options *o = r->options;
    bool conv = options_given(o, "conv-rank") || options_given(o, "conv-block-dims");
    if (r->network == DYLORA && !set(r, "--network-module networks.dylora", "kind", "dylora", err)) return false;
    if (r->network == DYLORA && option_find("block-size", o->command->bit) && !set(r, "--network-module", "block-size", "1", err))
        return false;
    if (options_given(o, "conv-rank") && !set(r, "--network-module", "conv-alpha", "1", err)) return false;
    return !conv || set(r, "--network-module", "targets", "blocks", err);
}

static bool defaults_of_lycoris(reading *r, error *err) {
    options *o = r->options;
    if (!set(r, "--network-module", "kind", "locon", err)) return false;
    bool ia3 = strcmp(o->kind, "ia3") == 0;
    if (ia3 && !options_given(o, "targets")) remark(o, "algo=ia3 without a preset: preset=ia3, as LyCORIS recommends");
    if (!set(r, "--network-module", "targets", ia3 ? "ia3" : "full", err)) return false;
    if (o->dora == 1 && !r->norms_of_inputs)
        remark(o, "dora_wd: the norms are those of the inputs (wd_on_output=False), which stable-diffusion-webui applies; LyCORIS' "
                  "default, those of the outputs, it does not");
    bool conv = options_given(o, "conv-rank");
    return !conv || set(r, "--network-module", "conv-alpha", options_text(o, "alpha"), err);
}

bool network_args_apply(options *o, error *err) {
    reading r = {.options = o};
    if (!find_network(o->network_module, &r.network, err)) return false;
    for (int i = 0; i < o->network_args.count; i++)
        if (!read_word(&r, o->network_args.item[i], err)) return false;
    if (!o->network_module) return true;
    return defaults_of_all(&r, err) && (r.network == LYCORIS ? defaults_of_lycoris(&r, err) : defaults_of_lora(&r, err));
}
