#include "lora/stack.h"

#include "lora/below.h"
#include "lora/dora.h"
#include "lora/residual.h"
#include "lora/stepwise.h"

#include "base/file.h"
#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct stack_entry {
    adapter *adapter;
    float weight[CHECKPOINT_PARTS];
    block_weights blocks;
} stack_entry;

struct adapter_stack {
    stack_entry *entries;
    int count;
    adapter_below *below;
};

adapter_stack *adapter_stack_create(void) {
    adapter_stack *s = memory_new(1, sizeof *s);
    s->below = adapter_below_create();
    return s;
}

void adapter_stack_free(adapter_stack *s) {
    if (!s) return;
    adapter_below_free(s->below);
    for (int i = 0; i < s->count; i++) adapter_free(s->entries[i].adapter);
    free(s->entries);
    free(s);
}

static int find(const adapter_stack *s, const adapter *a) {
    for (int i = 0; i < s->count; i++)
        if (s->entries[i].adapter == a) return i;
    return -1;
}

void adapter_stack_add(adapter_stack *s, adapter *a, float unet_weight, float text_weight) {
    s->entries = memory_grow(s->entries, (size_t)s->count + 1, sizeof *s->entries);
    s->entries[s->count++] = (stack_entry){.adapter = a};
    adapter_stack_set_weights(s, a, unet_weight, text_weight);
}

void adapter_stack_remove(adapter_stack *s, adapter *a) {
    int index = find(s, a);
    if (index < 0) return;
    adapter_below_forget(s->below, a);
    s->count--;
    memmove(&s->entries[index], &s->entries[index + 1], (size_t)(s->count - index) * sizeof *s->entries);
    adapter_free(a);
}

int adapter_stack_count(const adapter_stack *s) { return s->count; }

adapter *adapter_stack_at(const adapter_stack *s, int index) { return index >= 0 && index < s->count ? s->entries[index].adapter : NULL; }

void adapter_stack_set_weights(adapter_stack *s, const adapter *a, float unet_weight, float text_weight) {
    int index = find(s, a);
    if (index < 0) return;
    s->entries[index].weight[CHECKPOINT_UNET] = unet_weight;
    s->entries[index].weight[CHECKPOINT_TEXT_ENCODER] = text_weight;
}

void adapter_stack_set_blocks(adapter_stack *s, const adapter *a, const block_weights *blocks) {
    int index = find(s, a);
    if (index >= 0) s->entries[index].blocks = *blocks;
}

/* What adapter number `level` of the stack has at a site, or NULL. Adapters of weight 0 leave no trace on the tape. */
static const adapter_module *module_at(const adapter_stack *s, int level, checkpoint_part part, const char *name, float *weight) {
    const stack_entry *e = &s->entries[level];
    *weight = e->weight[part];
    const adapter_module *m = *weight != 0 ? adapter_find_module(e->adapter, part, name) : NULL;
    if (m) *weight *= block_weights_of(&e->blocks, m->info);
    return *weight != 0 ? m : NULL;
}

/* The product with a module that changes it as a whole. */
static tensor *changed_product(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add,
                               float weight) {
    return m->kind->apply ? m->kind->apply(m, c, level, x, add, weight) : adapter_dora_apply(m, c, level, x, add, weight);
}

tensor *adapter_chain_product(const adapter_chain *c, int level, tensor *x, const layer_addend *add) {
    const adapter_site *site = c->site;
    while (level-- > 0) {
        float weight;
        const adapter_module *m = module_at(c->stack, level, site->part, site->name, &weight);
        if (!m) continue;
        if (m->kind->apply || adapter_module_magnitude(m)) {
            tensor *changed = changed_product(m, c, level, x, add, weight);
            return adapter_step_skips(m) ? adapter_step_choose(m, c->tape, changed, adapter_chain_product(c, level, x, add)) : changed;
        }
        return adapter_module_branch(m, c, x, adapter_chain_product(c, level, x, add), weight);
    }
    if (site->conv) return op_conv2d(c->tape, x, site->weight, add->bias, add->residual, add->shift, *site->conv);
    return op_linear(c->tape, x, site->weight, add->bias, add->residual, 1.0f);
}

bool adapter_chain_changes(const adapter_chain *c, int level) {
    float weight;
    while (level-- > 0)
        if (module_at(c->stack, level, c->site->part, c->site->name, &weight)) return true;
    return false;
}

tensor *adapter_chain_factor(const adapter_chain *c, tensor *x, tensor *factor) {
    if (!x || !factor) return NULL;
    if (factor->rank == 2) return op_linear(c->tape, x, factor, NULL, NULL, 1);
    if (!c->site->conv) return tape_fail(c->tape, "module %s: an adapter of a convolution on a linear layer", c->site->name);
    return op_conv2d(c->tape, x, factor, NULL, NULL, NULL, *c->site->conv);
}

tensor *adapter_chain_replace(const adapter_chain *c, tensor *y, tensor *changed, tensor *rescale, const layer_addend *add,
                              float multiplier) {
    column_scale s = {.w = rescale, .a = rescale ? 0 : multiplier, .b = multiplier, .bias = add->bias, .shift = add->shift};
    if (multiplier == 1) {
        s.residual = add->residual, s.c = 1;
        bool unchanged = !rescale && !add->bias && !add->shift && !add->residual;
        return unchanged ? changed : op_scale_columns(c->tape, changed, s);
    }
    s.residual = y, s.c = 1 - multiplier;
    tensor *mixed = op_scale_columns(c->tape, changed, s);
    return add->residual ? op_add(c->tape, mixed, add->residual) : mixed;
}

/* Whether all that is below are differences, which add up. */
static bool only_differences(const adapter_chain *c, int level) {
    for (float weight; level-- > 0;) {
        const adapter_module *m = module_at(c->stack, level, c->site->part, c->site->name, &weight);
        if (m && (!m->kind->difference || adapter_module_magnitude(m))) return false;
    }
    return true;
}

static tensor *difference_below(const adapter_chain *c, int level) {
    adapter_layer *layers = memory_new((size_t)level, sizeof *layers);
    const module_info *info = NULL;
    error err;
    int count = 0;
    for (int below = 0; below < level; below++) {
        float weight;
        const adapter_module *m = module_at(c->stack, below, c->site->part, c->site->name, &weight);
        if (!m) continue;
        info = m->info;
        layers[count++] = (adapter_layer){c->stack->entries[below].adapter, weight};
    }
    tensor *value = adapter_below_change(c->stack->below, layers, count, info, &err);
    free(layers);
    return value ? value : tape_fail(c->tape, "%s", err.text);
}

tensor *adapter_chain_difference(const adapter_chain *c, int level, tensor *difference) {
    if (!only_differences(c, level))
        return op_scale_columns(c->tape, difference, (column_scale){.a = 1, .residual = difference_below(c, level), .c = 1});
    for (int below = 0; below < level; below++) {
        float weight;
        const adapter_module *m = module_at(c->stack, below, c->site->part, c->site->name, &weight);
        if (!m) continue;
        difference =
            op_scale_columns(c->tape, difference, (column_scale){.a = 1, .residual = adapter_module_difference(m, c->tape), .c = weight});
    }
    return difference;
}

void adapter_chain_norm(const adapter_stack *s, tape *t, checkpoint_part part, const char *name, tensor **gamma, tensor **beta) {
    for (int level = 0; level < s->count; level++) {
        float weight;
        const adapter_module *m = module_at(s, level, part, name, &weight);
        if (m && m->kind->apply_norm) m->kind->apply_norm(m, t, gamma, beta, weight);
    }
}

/* ---- --lora ---- */

/* The number that ends the text behind its last colon. */
static bool take_weight(char *text, float *weight) {
    char *colon = strrchr(text, ':'), *end;
    if (!colon || colon == text || !colon[1] || strchr(" \t", colon[1])) return false;
    double value = strtod(colon + 1, &end);
    if (*end || !isfinite(value)) return false;
    *weight = (float)value;
    *colon = 0;
    return true;
}

float adapter_spec_weight(const adapter_spec *spec, const module_info *m) {
    return (m->part == CHECKPOINT_TEXT_ENCODER ? spec->text_weight : spec->unet_weight) * block_weights_of(&spec->blocks, m);
}

bool adapter_spec_parse(const char *text, adapter_spec *out, error *err) {
    *out = (adapter_spec){.path = memory_string(text), .unet_weight = 1, .text_weight = 1};
    if (!*text) {
        free(out->path);
        *out = (adapter_spec){0};
        return error_set(err, "--lora: needs FILE, FILE:WEIGHT or FILE:WEIGHT:TE_WEIGHT");
    }
    if (file_exists(text) || file_is_directory(text)) return true;
    float last, first;
    char *blocks = strstr(out->path, ":lbw=");
    if (blocks) {
        *blocks = 0;
        if (!block_weights_parse(&out->blocks, blocks + 5, err)) {
            free(out->path);
            *out = (adapter_spec){0};
            return error_prefix(err, "--lora %s", text);
        }
    }
    if (take_weight(out->path, &last)) {
        bool two = take_weight(out->path, &first);
        out->unet_weight = two ? first : last;
        out->text_weight = last;
    }
    char *colon = strrchr(out->path, ':');
    if (!colon || file_exists(out->path) || file_is_directory(out->path)) return true;
    error_set(err, "--lora %s: \"%s\" is no weight, and there is no file of that name; write FILE:WEIGHT or FILE:WEIGHT:TE_WEIGHT", text,
              colon + 1);
    free(out->path);
    *out = (adapter_spec){0};
    return false;
}
