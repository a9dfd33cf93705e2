#include "lycoris/kinds.h"

static bool is_tlora(const adapter_group *g) {
    return adapter_group_part(g, "q_layer.weight") || adapter_group_part(g, "p_layer.weight") || adapter_group_part(g, "lambda_layer");
}

/* Half of what it does is not in the file (formats.md 3.16). */
static const adapter_kind TLORA = {
    .name = "tlora",
    .title = "T-LoRA",
    .recognises = is_tlora,
    .parts = (const char *const[]){"q_layer.weight", "p_layer.weight", "lambda_layer", "alpha", NULL},
};

/* In the order in which webui asks (formats.md 2.3). */
static const adapter_kind *const KINDS[] = {
    &adapter_kind_lora,
    &adapter_kind_loha,
    &adapter_kind_ia3,
    &adapter_kind_lokr,
    &adapter_kind_full,
    &adapter_kind_norm,
    &adapter_kind_glora,
    &adapter_kind_boft,
    &adapter_kind_oft,
    &TLORA,
    NULL,
};

const adapter_kind *const *adapter_kinds(void) { return KINDS; }

const adapter_kind *adapter_kind_of(const adapter_group *g) {
    for (const adapter_kind *const *kind = KINDS; *kind; kind++)
        if ((*kind)->recognises(g)) return *kind;
    return NULL;
}
