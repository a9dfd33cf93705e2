#include "lora/settings.h"

#include "base/memory.h"

#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

typedef struct rule {
    regex_t regex;
    double value;
} rule;

typedef struct rules {
    rule *item;
    int count;
} rules;

/* Values by block; absent: not given. */
typedef struct block_list {
    bool given;
    double value[ADAPTER_BLOCKS];
} block_list;

struct module_settings {
    const adapter_options *options;
    block_list dims, alphas, conv_dims, conv_alphas, rates;
    rules ranks, alpha_rules, rate_rules;
};

/* ---- blocks (sd-scripts networks/lora.py: get_block_index) ---- */

int module_block(const module_info *m) {
    int i, j;
    char side[8], layer[16];
    if (m->part != CHECKPOINT_UNET) return -1;
    if (strncmp(m->name, "mid_block.", 10) == 0) return 12;
    if (sscanf(m->name, "%7[a-z]_blocks.%d.%15[a-z].%d.", side, &i, layer, &j) != 4) return -1;
    int within = strstr(layer, "samplers") ? 3 * i + 2 : 3 * i + j, block = (strcmp(side, "up") == 0 ? 13 : 1) + within;
    return block < ADAPTER_BLOCKS ? block : -1;
}

/* ---- texts ---- */

static bool read_number(const char **text, double *value) {
    char *end;
    *value = strtod(*text, &end);
    if (end == *text || !isfinite(*value)) return false;
    *text = end + strspn(end, " ");
    return true;
}

/* "4,8,8,...": `least` to `most` numbers; an empty place is 0. Returns how many, -1 on error. */
static int read_list(const char *option, const char *text, int least, int most, double *values, error *err) {
    int count = 0;
    for (const char *p = text;; p++) {
        p += strspn(p, " ");
        double value = 0;
        if (*p && *p != ',' && !read_number(&p, &value)) break;
        if (*p && *p != ',') break;
        if (count == most || value < 0) break;
        values[count++] = value;
        if (*p) continue;
        if (count >= least) return count;
        break;
    }
    if (least == most)
        error_set(err, "--%s %s: needs %d numbers with commas between them, none below 0", option, text, most);
    else
        error_set(err, "--%s %s: needs up to %d numbers with commas between them, none below 0", option, text, most);
    return -1;
}

static bool read_blocks(const char *option, const char *text, bool whole, block_list *out, error *err) {
    if (!text) return true;
    out->given = true;
    if (read_list(option, text, ADAPTER_BLOCKS, ADAPTER_BLOCKS, out->value, err) < 0) return false;
    for (int i = 0; whole && i < ADAPTER_BLOCKS; i++)
        if (out->value[i] != floor(out->value[i]) || out->value[i] > ADAPTER_MOST_RANK)
            return error_set(err, "--%s %s: %g is no rank", option, text, out->value[i]);
    return true;
}

/* ---- learning rates by block (get_block_lr_weight) ---- */

static double shape_cosine(double x) { return sin(PI * (1 - x) / 2); }
static double shape_sine(double x) { return sin(PI * x / 2); }
static double shape_linear(double x) { return x; }
static double shape_reverse(double x) { return 1 - x; }
static double shape_zeros(double x) { return 0 * x; }

static const struct {
    const char *name;
    double (*at)(double x); /* 0 at a side's first block, 1 at its last */
} SHAPES[] = {
    {"cosine", shape_cosine}, {"sine", shape_sine}, {"linear", shape_linear}, {"reverse_linear", shape_reverse}, {"zeros", shape_zeros}};

/* "cosine", "linear+0.25". False: it begins with no shape's name. */
static bool shape_read(const char *text, double *values) {
    size_t length = strcspn(text, "+");
    for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++) {
        if (strlen(SHAPES[s].name) != length || strncmp(SHAPES[s].name, text, length) != 0) continue;
        double base = 0;
        const char *rest = text[length] ? text + length + 1 : "";
        if (text[length] && (!read_number(&rest, &base) || *rest || base < 0)) return false;
        for (int i = 0; i < ADAPTER_SIDE_BLOCKS; i++) values[i] = SHAPES[s].at((double)i / (ADAPTER_SIDE_BLOCKS - 1)) + base;
        return true;
    }
    return false;
}

/* Numbers that are missing at the end are 1, as in sd-scripts. */
static bool read_rates(const char *option, const char *text, bool shapes, int count, double *values, error *err) {
    for (int i = 0; i < count; i++) values[i] = 1;
    if (!text || (shapes && shape_read(text, values))) return true;
    if (shapes && !strchr(text, ','))
        return error_set(err,
                         "--%s %s: neither %d numbers with commas between them nor cosine, sine, linear, reverse_linear or zeros "
                         "(with +BASE behind, if wanted)",
                         option, text, count);
    return read_list(option, text, 1, count, values, err) > 0;
}

static bool read_block_rates(module_settings *s, error *err) {
    const adapter_options *o = s->options;
    double *value = s->rates.value;
    s->rates.given = o->down_lr_weight || o->mid_lr_weight || o->up_lr_weight;
    if (!s->rates.given) return true;
    if (!read_rates("down-lr-weight", o->down_lr_weight, true, ADAPTER_SIDE_BLOCKS, value, err) ||
        !read_rates("mid-lr-weight", o->mid_lr_weight, false, 1, value + ADAPTER_SIDE_BLOCKS, err) ||
        !read_rates("up-lr-weight", o->up_lr_weight, true, ADAPTER_SIDE_BLOCKS, value + ADAPTER_SIDE_BLOCKS + 1, err))
        return false;
    const char *const given[] = {o->down_lr_weight, o->mid_lr_weight, o->up_lr_weight};
    for (int i = 0; i < ADAPTER_BLOCKS; i++)
        if (given[i < 12 ? 0 : i == 12 ? 1 : 2] && value[i] <= o->block_lr_zero_threshold) value[i] = 0;
    return true;
}

/* ---- expressions ---- */

bool module_matches(const void *regex, const module_info *m) {
    char *full = memory_format("%s.%s", m->part == CHECKPOINT_UNET ? "unet" : "text_encoder", m->name);
    bool found = regexec(regex, m->name, 0, NULL, 0) == 0 || regexec(regex, full, 0, NULL, 0) == 0;
    free(full);
    return found;
}

/* "REGEX=NUMBER": the last '=' counts. */
static bool read_rule(const char *option, const char *text, double least, double most, bool whole, rules *out, error *err) {
    const char *equals = strrchr(text, '='), *number = equals ? equals + 1 : "";
    double value;
    if (!equals || equals == text || !read_number(&number, &value) || *number)
        return error_set(err, "--%s %s: is not of the form REGEX=NUMBER", option, text);
    if (value < least || value > most || (whole && value != floor(value)))
        return error_set(err, "--%s %s: %s is not a%s number from %g to %g", option, text, equals + 1, whole ? " whole" : "", least, most);
    char *expression = memory_format("%.*s", (int)(equals - text), text), reason[128];
    out->item = memory_grow(out->item, (size_t)out->count + 1, sizeof *out->item);
    rule *r = &out->item[out->count];
    r->value = value;
    int status = regcomp(&r->regex, expression, REG_EXTENDED | REG_NOSUB);
    if (status == 0)
        out->count++;
    else
        regerror(status, &r->regex, reason, sizeof reason);
    free(expression);
    return status == 0 || error_set(err, "--%s %s: no regular expression: %s", option, text, reason);
}

static bool read_rules(const char *option, adapter_rules given, double least, double most, bool whole, rules *out, error *err) {
    for (int i = 0; i < given.count; i++)
        if (!read_rule(option, given.item[i], least, most, whole, out, err)) return false;
    return true;
}

static void rules_free(rules *r) {
    for (int i = 0; i < r->count; i++) regfree(&r->item[i].regex);
    free(r->item);
}

/* The last rule that fits, or NULL. */
static const rule *rule_for(const rules *r, const module_info *m) {
    for (int i = r->count; i-- > 0;)
        if (module_matches(&r->item[i].regex, m)) return &r->item[i];
    return NULL;
}

/* ---- all of it ---- */

module_settings *module_settings_create(const adapter_options *o, error *err) {
    module_settings *s = memory_new(1, sizeof *s);
    s->options = o;
    bool ok = read_blocks("block-dims", o->block_dims, true, &s->dims, err) &&
              read_blocks("block-alphas", o->block_alphas, false, &s->alphas, err) &&
              read_blocks("conv-block-dims", o->conv_block_dims, true, &s->conv_dims, err) &&
              read_blocks("conv-block-alphas", o->conv_block_alphas, false, &s->conv_alphas, err) && read_block_rates(s, err) &&
              read_rules("module-rank", o->module_rank, 0, ADAPTER_MOST_RANK, true, &s->ranks, err) &&
              read_rules("module-alpha", o->module_alpha, 1e-6, 1e6, false, &s->alpha_rules, err) &&
              read_rules("module-lr", o->module_lr, 0, 1e6, false, &s->rate_rules, err);
    if (ok) return s;
    module_settings_free(s);
    return NULL;
}

void module_settings_free(module_settings *s) {
    if (!s) return;
    rules_free(&s->ranks);
    rules_free(&s->alpha_rules);
    rules_free(&s->rate_rules);
    free(s);
}

module_setting module_settings_of(const module_settings *s, const module_info *m) {
    const adapter_options *o = s->options;
    bool conv = m->kernel > 1;
    int block = module_block(m);
    const block_list *dims = conv ? &s->conv_dims : &s->dims, *alphas = conv ? &s->conv_alphas : &s->alphas;
    module_setting result = {.rank = conv && o->conv_rank > 0 ? o->conv_rank : o->rank,
                             .alpha = conv && o->conv_alpha > 0 ? o->conv_alpha : o->alpha,
                             .rate = 1};
    double alpha = -1; /* of its own */
    const rule *r;
    int usual = result.rank;
    if (block >= 0 && dims->given) result.rank = (int)dims->value[block];
    if (block >= 0 && alphas->given) alpha = alphas->value[block];
    if (block >= 0 && s->rates.given) result.rate = s->rates.value[block];
    if ((r = rule_for(&s->ranks, m))) result.rank = (int)r->value;
    if ((r = rule_for(&s->alpha_rules, m))) alpha = r->value;
    if ((r = rule_for(&s->rate_rules, m))) result.rate = r->value;
    /* Trainers take an alpha of 0 as the rank. */
    if (alpha == 0 || (alpha < 0 && o->alpha_is_rank && result.rank != usual)) alpha = result.rank;
    if (alpha > 0) result.alpha = alpha;
    return result;
}
