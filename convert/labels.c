#include "convert/labels.h"

#include "base/memory.h"
#include "lora/save.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static safetensors_pair *find(const labels *l, const char *key) {
    for (size_t i = 0; i < l->count; i++)
        if (strcmp(l->pairs[i].key, key) == 0) return &l->pairs[i];
    return NULL;
}

static void free_text(const char *text) {
    union {
        const char *text;
        void *block;
    } owned = {.text = text};
    free(owned.block);
}

void labels_set(labels *l, const char *key, const char *value) {
    safetensors_pair *p = find(l, key);
    if (!p && !value) return;
    if (p) {
        free_text(p->value);
        p->value = value ? memory_string(value) : NULL;
        if (value) return;
        free_text(p->key);
        *p = l->pairs[--l->count];
        return;
    }
    l->pairs = memory_grow(l->pairs, l->count + 1, sizeof *l->pairs);
    l->pairs[l->count++] = (safetensors_pair){memory_string(key), memory_string(value)};
}

const char *labels_get(const labels *l, const char *key) {
    const safetensors_pair *p = find(l, key);
    return p ? p->value : NULL;
}

void labels_free(labels *l) {
    for (size_t i = 0; i < l->count; i++) {
        free_text(l->pairs[i].key);
        free_text(l->pairs[i].value);
    }
    free(l->pairs);
    *l = (labels){0};
}

void labels_copy(labels *l, const safetensors *source) {
    static const char *const stale[] = {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata", "format"};
    for (size_t i = 0; i < source->metadata_count; i++) {
        bool keep = true;
        for (size_t k = 0; k < sizeof stale / sizeof *stale; k++) keep = keep && strcmp(source->metadata[i].key, stale[k]) != 0;
        if (keep) labels_set(l, source->metadata[i].key, source->metadata[i].value);
    }
}

void labels_copy_keys(labels *l, const safetensors *source, const char *const *keys, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const char *value = safetensors_metadata(source, keys[i]);
        if (value) labels_set(l, keys[i], value);
    }
}

/* ---- The network ---- */

/* Rank and alpha of what has no large kernel, or of what has one, as texts; empty: there is none, "Dynamic": they differ. */
static void dimension(const draft *d, bool large, char rank[32], char alpha[32]) {
    const draft_module *first = NULL;
    bool same = true;
    rank[0] = alpha[0] = 0;
    for (int i = 0; i < d->count; i++) {
        const draft_module *m = &d->modules[i];
        if ((m->info->kernel > 1) != large || m->rank == 0) continue;
        if (!first) first = m;
        same = same && m->rank == first->rank && (float)m->alpha == (float)first->alpha;
    }
    if (!first) return;
    snprintf(rank, 32, "Dynamic"); /* what sd-scripts' resize tool writes for mixed ranks */
    snprintf(alpha, 32, "Dynamic");
    if (!same) return;
    snprintf(rank, 32, "%lld", (long long)first->rank);
    metadata_number((double)(float)first->alpha, alpha);
}

static const adapter_trainee *trainee_of(const draft *d) {
    const adapter_kind *kind = d->modules[0].kind;
    for (int i = 0; i < d->count; i++)
        if (d->modules[i].kind->init && d->modules[i].kind != d->modules[0].kind) kind = NULL;
    const adapter_trainee *t;
    for (int i = 0; kind && (t = adapter_trainee_at(i)); i++)
        if (t->kind == kind) return t;
    return NULL;
}

void labels_network(labels *l, const draft *d) {
    char rank[32], alpha[32], conv_rank[32], conv_alpha[32];
    const adapter_trainee *trainee = d->count ? trainee_of(d) : NULL;
    dimension(d, false, rank, alpha);
    dimension(d, true, conv_rank, conv_alpha);
    labels_set(l, "ss_network_module", trainee ? trainee->module : "lycoris.kohya");
    labels_set(l, "ss_network_dim", *rank ? rank : *conv_rank ? conv_rank : NULL);
    labels_set(l, "ss_network_alpha", *rank ? alpha : *conv_rank ? conv_alpha : NULL);
    json_t *args = json_object();
    if (trainee && trainee->algorithm) json_object_set_new(args, "algo", json_string(trainee->algorithm));
    if (*conv_rank) {
        json_object_set_new(args, "conv_dim", json_string(conv_rank));
        json_object_set_new(args, "conv_alpha", json_string(conv_alpha));
    }
    char *text = json_object_size(args) ? json_dumps(args, 0) : NULL;
    labels_set(l, "ss_network_args", text);
    free(text);
    json_decref(args);
}
