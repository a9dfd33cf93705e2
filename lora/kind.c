#include "lora/kind.h"

static bool has(const adapter_group *g, const char *part) { return adapter_group_part(g, part) != NULL; }

static bool rank_of(const adapter_group *g, const char *part, int rank) {
    const adapter_part *p = adapter_group_part(g, part);
    return p && p->tensor->rank == rank;
}

/* ---- Kinds that are told by their parts and refused by their name ---- */

static bool is_loha(const adapter_group *g) {
    return has(g, "hada_w1_a") || has(g, "hada_w1_b") || has(g, "hada_w2_a") || has(g, "hada_w2_b");
}
static bool is_ia3(const adapter_group *g) { return has(g, "weight") || has(g, "ia3_l"); }
static bool is_lokr(const adapter_group *g) {
    return has(g, "lokr_w1") || has(g, "lokr_w1_a") || has(g, "lokr_w1_b") || has(g, "lokr_w2") || has(g, "lokr_w2_a") ||
           has(g, "lokr_w2_b");
}
static bool is_full(const adapter_group *g) { return has(g, "diff") || has(g, "diff_b"); }
static bool is_norm(const adapter_group *g) { return has(g, "w_norm") || has(g, "b_norm"); }
static bool is_glora(const adapter_group *g) {
    return has(g, "a1.weight") || has(g, "a2.weight") || has(g, "b1.weight") || has(g, "b2.weight");
}
static bool is_boft(const adapter_group *g) { return rank_of(g, "oft_blocks", 4) || has(g, "boft_R"); }
static bool is_oft(const adapter_group *g) {
    return has(g, "oft_blocks") || has(g, "oft_diag") || has(g, "oft_R.weight") || has(g, "oft_R");
}
static bool is_tlora(const adapter_group *g) { return has(g, "q_layer.weight") || has(g, "p_layer.weight") || has(g, "lambda_layer"); }

#define PARTS(...) \
    (const char *const[]) { __VA_ARGS__, NULL }

static const adapter_kind LOHA = {
    .name = "loha",
    .title = "LoHa",
    .recognises = is_loha,
    .parts = PARTS("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha", "scale", "dora_scale"),
};
static const adapter_kind IA3 = {.name = "ia3", .title = "(IA)^3", .recognises = is_ia3, .parts = PARTS("weight", "on_input", "ia3_l")};
static const adapter_kind LOKR = {
    .name = "lokr",
    .title = "LoKr",
    .recognises = is_lokr,
    .parts = PARTS("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha", "scale", "dora_scale"),
};
static const adapter_kind FULL = {.name = "full", .title = "full difference", .recognises = is_full, .parts = PARTS("diff", "diff_b")};
static const adapter_kind NORM = {.name = "norm", .title = "norm", .recognises = is_norm, .parts = PARTS("w_norm", "b_norm")};
static const adapter_kind GLORA = {
    .name = "glora",
    .title = "GLoRA",
    .recognises = is_glora,
    .parts = PARTS("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "alpha"),
};
static const adapter_kind BOFT = {
    .name = "boft", .title = "BOFT", .recognises = is_boft, .parts = PARTS("oft_blocks", "alpha", "rescale", "boft_R", "boft_s")};
static const adapter_kind OFT = {
    .name = "oft",
    .title = "OFT",
    .recognises = is_oft,
    .parts = PARTS("oft_blocks", "oft_diag", "alpha", "rescale", "oft_R.weight", "oft_R"),
};
static const adapter_kind TLORA = {.name = "tlora",
                                   .title = "T-LoRA",
                                   .recognises = is_tlora,
                                   .parts = PARTS("q_layer.weight", "p_layer.weight", "lambda_layer", "alpha")};

/* In the order in which webui asks (formats.md 2.3). */
static const adapter_kind *const KINDS[] = {
    &adapter_kind_lora, &LOHA, &IA3, &LOKR, &FULL, &NORM, &GLORA, &BOFT, &OFT, &TLORA, NULL,
};

const adapter_kind *const *adapter_kinds(void) { return KINDS; }

const adapter_kind *adapter_kind_of(const adapter_group *g) {
    for (const adapter_kind *const *kind = KINDS; *kind; kind++)
        if ((*kind)->recognises(g)) return *kind;
    return NULL;
}
