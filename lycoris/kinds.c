#include "lycoris/kinds.h"

#include <string.h>

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
    &adapter_kind_boft_input,
    &adapter_kind_oft_input,
    &TLORA,
    NULL,
};

static const adapter_trainee TRAINEES[] = {
    {"lora", &adapter_kind_lora, "attn-mlp", "networks.lora", NULL},
    {"locon", &adapter_kind_lora, "full", "networks.lora", NULL},
    {"loha", &adapter_kind_loha, "attn-mlp", "lycoris.kohya", "loha"},
    {"lokr", &adapter_kind_lokr, "attn-mlp", "lycoris.kohya", "lokr"},
    {"dylora", &adapter_kind_lora, "attn-mlp", "networks.dylora", NULL},
    {"ia3", &adapter_kind_ia3, "ia3", "lycoris.kohya", "ia3"},
    {"glora", &adapter_kind_glora, "attn-mlp", "lycoris.kohya", "glora"},
    {"oft", &adapter_kind_oft, "attn-mlp", "lycoris.kohya", "diag-oft"},
    {"boft", &adapter_kind_boft, "attn-mlp", "lycoris.kohya", "boft"},
    {"full", &adapter_kind_full, "attn-mlp", "lycoris.kohya", "full"},
    /* LyCORIS has no algorithm of that name: a network of dimension 0 with train_norm. */
    {"norm", &adapter_kind_norm, "full", "lycoris.kohya", NULL},
};
enum { TRAINEE_COUNT = sizeof TRAINEES / sizeof *TRAINEES };

const adapter_trainee *adapter_trainee_at(int index) { return index < TRAINEE_COUNT ? &TRAINEES[index] : NULL; }

const adapter_trainee *adapter_trainee_find(const char *name) {
    for (int i = 0; i < TRAINEE_COUNT; i++)
        if (strcmp(TRAINEES[i].name, name) == 0) return &TRAINEES[i];
    return NULL;
}

const adapter_kind *const *adapter_kinds(void) { return KINDS; }

const adapter_kind *adapter_kind_of(const adapter_group *g) {
    for (const adapter_kind *const *kind = KINDS; *kind; kind++)
        if ((*kind)->recognises(g)) return *kind;
    return NULL;
}
