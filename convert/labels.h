/* An output file's metadata: what the source said, with what is no longer true put right. */
#ifndef VULORA_CONVERT_LABELS_H
#define VULORA_CONVERT_LABELS_H

#include "convert/draft.h"
#include "formats/safetensors.h"

typedef struct labels {
    safetensors_pair *pairs; /* keys and values are owned */
    size_t count;
} labels;

/* Everything but hashes, and PEFT's configuration, which spell.h writes anew. */
void labels_copy(labels *l, const safetensors *source);
/* The first `count` keys of `keys` that the source has. */
void labels_copy_keys(labels *l, const safetensors *source, const char *const *keys, size_t count);
/* value NULL: takes the key out. */
void labels_set(labels *l, const char *key, const char *value);
const char *labels_get(const labels *l, const char *key);
void labels_free(labels *l);

/* ss_network_module, ss_network_dim, ss_network_alpha and ss_network_args as the draft is. */
void labels_network(labels *l, const draft *d);

#endif
