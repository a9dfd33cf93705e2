#include "lora/stack.h"

#include "base/file.h"
#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct stack_entry {
    adapter *adapter;
    float weight[CHECKPOINT_PARTS];
} stack_entry;

struct adapter_stack {
    stack_entry *entries;
    int count;
};

adapter_stack *adapter_stack_create(void) { return memory_new(1, sizeof(adapter_stack)); }

void adapter_stack_free(adapter_stack *s) {
    if (!s) return;
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

/* Adapters of weight 0 leave no trace on the tape. */
tensor *adapter_chain_product(const adapter_chain *c, int level, tensor *x, const layer_addend *add) {
    const adapter_site *site = c->site;
    for (; level > 0; level--) {
        const stack_entry *e = &c->stack->entries[level - 1];
        float weight = e->weight[site->part];
        const adapter_module *m = weight != 0 ? adapter_find_module(e->adapter, site->part, site->name) : NULL;
        if (!m) continue;
        if (m->kind->apply) return m->kind->apply(m, c, level - 1, x, add, weight);
        return m->kind->branch(m, c, x, adapter_chain_product(c, level - 1, x, add), weight);
    }
    if (site->conv) return op_conv2d(c->tape, x, site->weight, add->bias, add->residual, add->shift, *site->conv);
    return op_linear(c->tape, x, site->weight, add->bias, add->residual, 1.0f);
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

bool adapter_spec_parse(const char *text, adapter_spec *out, error *err) {
    *out = (adapter_spec){.path = memory_string(text), .unet_weight = 1, .text_weight = 1};
    if (!*text) {
        free(out->path);
        *out = (adapter_spec){0};
        return error_set(err, "--lora: needs FILE, FILE:WEIGHT or FILE:WEIGHT:TE_WEIGHT");
    }
    if (file_exists(text) || file_is_directory(text)) return true;
    float last, first;
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
