/* The kinds of this folder, one file each. lycoris/kinds.c has the table of all. */
#ifndef VULORA_LYCORIS_KINDS_H
#define VULORA_LYCORIS_KINDS_H

#include "lora/kind.h"

extern const adapter_kind adapter_kind_loha, adapter_kind_lokr, adapter_kind_ia3, adapter_kind_glora, adapter_kind_oft, adapter_kind_boft,
    adapter_kind_full, adapter_kind_norm, adapter_kind_oft_input, adapter_kind_boft_input;

/* LyCORIS' factorization(dimension, factor) into two factors, low <= high (formats.md 3.4). factor -1: as even as possible. */
void adapter_factorize(int64_t dimension, int64_t factor, int64_t *low, int64_t *high);

#endif
