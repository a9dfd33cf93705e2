/* Which programs load what: formats.md 8, module by module. */
#include "cli/inspection.h"

#include <string.h>

const char *loader_name(loader program) {
    static const char *const names[LOADER_COUNT] = {"webui", "comfyui", "diffusers", "sd.cpp"};
    return names[program];
}

const char *loader_title(loader program) {
    static const char *const titles[LOADER_COUNT] = {"webui", "ComfyUI", "diffusers", "stable-diffusion.cpp"};
    return titles[program];
}

static bool has(const adapter_group *g, const char *part) { return adapter_group_part(g, part) != NULL; }

static const safetensors_tensor *get(const adapter_group *g, const char *part) {
    const adapter_part *p = adapter_group_part(g, part);
    return p ? p->tensor : NULL;
}

static bool is_kind(const adapter_kind *kind, const char *name) { return kind && !strcmp(kind->name, name); }

bool inspection_alpha(const adapter_group *g, double *alpha) {
    bool present;
    return adapter_group_scalar(g, "alpha", alpha, &present, NULL) && present;
}

int64_t inspection_rank(const adapter_kind *kind, const adapter_group *g) {
    static const struct {
        const char *kind, *part;
        int dim;
    } rows[] = {{"lora", "lora_down.weight", 0}, {"loha", "hada_w1_b", 0}, {"lokr", "lokr_w2_b", 0}, {"lokr", "lokr_w1_b", 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const safetensors_tensor *t = is_kind(kind, rows[i].kind) ? get(g, rows[i].part) : NULL;
        if (t && t->rank > rows[i].dim) return t->dims[rows[i].dim];
    }
    const safetensors_tensor *a = is_kind(kind, "glora") ? get(g, "a1.weight") : NULL;
    return a && a->rank >= 2 ? (a->dims[0] < a->dims[1] ? a->dims[0] : a->dims[1]) : 0;
}

/* ---- one module ---- */

static bool dora_on_output(const adapter_group *g) {
    const safetensors_tensor *t = get(g, "dora_scale");
    return t && (t->rank < 2 || t->dims[0] != 1);
}

static bool constrained(const adapter_group *g) {
    double alpha;
    return inspection_alpha(g, &alpha) && alpha != 0;
}

/* The older naming of GLoRA, a1 [r, I], on a linear layer, with alpha = r: what webui computes then is what was trained. */
static bool glora_is_old_and_plain(const adapter_kind *kind, const adapter_group *g) {
    const safetensors_tensor *a = get(g, "a1.weight"), *b = get(g, "b2.weight");
    double alpha;
    return a && b && a->rank == 2 && b->rank == 2 && a->dims[0] < a->dims[1] && inspection_alpha(g, &alpha) &&
           alpha == (double)inspection_rank(kind, g);
}

/* Kinds whose tensors webui multiplies as they are in the file. */
static bool types_differ(const adapter_kind *kind, const adapter_group *g) {
    static const char *const multiplied[] = {"loha", "lokr", "glora", "oft", "boft"};
    static const char *const apart[] = {"alpha", "scale", "dora_scale"};
    bool product = false;
    const safetensors_tensor *first = NULL;
    for (int k = 0; k < 5; k++) product |= is_kind(kind, multiplied[k]);
    for (int p = 0; product && p < g->count; p++) {
        bool skip = false;
        for (int k = 0; k < 3; k++) skip |= !strcmp(g->parts[p].name, apart[k]);
        if (skip) continue;
        if (first && first->type != g->parts[p].tensor->type) return true;
        first = g->parts[p].tensor;
    }
    return false;
}

static const char *webui_obstacle(const adapter_kind *kind, const adapter_group *g) {
    double alpha;
    if (g->style == ADAPTER_DOTTED || g->style == ADAPTER_PROCESSOR)
        return "dotted names as PEFT and diffusers write them, which webui does not know";
    if (g->style == ADAPTER_OFT_UNET && (strstr(g->shown, "down_blocks") || strstr(g->shown, "mid_block") || strstr(g->shown, "up_blocks")))
        return "webui does not find modules named oft_unet in diffusers' spelling";
    if (strstr(g->shown, "conv_norm_out") || strstr(g->shown, "text_model_final_layer_norm"))
        return "webui does not find this module under its diffusers name";
    if (!kind || is_kind(kind, "tlora")) return "webui knows no such set of parts and refuses the whole file";
    if (is_kind(kind, "lora") && (!has(g, "lora_up.weight") || !has(g, "lora_down.weight"))) return "one of the two matrices is missing";
    if (inspection_alpha(g, &alpha) && alpha == 0 && (is_kind(kind, "lora") || is_kind(kind, "loha") || is_kind(kind, "lokr")))
        return "alpha is 0: no effect in webui, while trainers take it as the rank";
    if (dora_on_output(g)) return "DoRA on the output axis: webui takes the norm along the other axis";
    if (is_kind(kind, "ia3")) {
        bool present;
        double on_input = 0;
        if (!adapter_group_scalar(g, "on_input", &on_input, &present, NULL) || !present)
            return "on_input is missing: webui refuses the whole file";
        if (on_input == 0 && get(g, "weight") && get(g, "weight")->rank == 4)
            return "(IA)^3 on the outputs of a convolution: webui skips the layer";
    }
    if (is_kind(kind, "full") && !has(g, "diff"))
        return "a bias without a weight (diff_b alone): webui knows no such set of parts and refuses the whole file";
    if (is_kind(kind, "norm") && !(has(g, "w_norm") && has(g, "b_norm")))
        return "w_norm and b_norm must both be there: webui refuses the whole file";
    if (is_kind(kind, "glora") && !glora_is_old_and_plain(kind, g))
        return "GLoRA in LyCORIS' current naming, on a convolution, or with alpha other than the rank";
    if ((is_kind(kind, "oft") || is_kind(kind, "boft")) && !has(g, "oft_blocks") && !has(g, "oft_diag"))
        return "OFT as PEFT and OneTrainer store it";
    if (has(g, "bias_indices")) return "a sparse residual, which webui leaves out";
    if (types_differ(kind, g)) return "tensors of different number types, which webui multiplies as they are: it skips the layer";
    return NULL;
}

static const char *comfyui_obstacle(const adapter_kind *kind, const adapter_group *g) {
    double alpha;
    if (g->style == ADAPTER_DOTTED && g->part == CHECKPOINT_UNET) return "dotted names of the U-Net's modules";
    if (g->style == ADAPTER_OFT_UNET) return "names that begin with oft_unet";
    if (!kind || is_kind(kind, "tlora") || is_kind(kind, "ia3")) return "a kind it does not know";
    if (dora_on_output(g)) return "DoRA on the output axis, which it computes otherwise";
    if (is_kind(kind, "glora")) {
        const safetensors_tensor *a = get(g, "a1.weight");
        return (a && a->dims[0] > a->dims[1]) || glora_is_old_and_plain(kind, g)
                   ? NULL
                   : "GLoRA in the older naming with alpha other than the rank, or on a convolution";
    }
    if (is_kind(kind, "oft") && (constrained(g) || has(g, "rescale") || !has(g, "oft_blocks"))) return "OFT with a constraint or rescaling";
    if (is_kind(kind, "boft") && (constrained(g) || !inspection_alpha(g, &alpha))) return "BOFT with a constraint or without alpha";
    return NULL;
}

static const char *diffusers_obstacle(const adapter_kind *kind, const adapter_group *g) {
    bool dotted = g->style == ADAPTER_DOTTED || g->style == ADAPTER_PROCESSOR;
    if (!is_kind(kind, "lora")) return "a kind it does not know: only LoRA";
    if (has(g, "lora_mid.weight")) return "Tucker's middle factor (lora_mid)";
    if (has(g, "dora_scale") && !dotted) return "DoRA: dora_scale is dropped, and the rest is another change";
    return NULL;
}

static const char *sdcpp_obstacle(const adapter_kind *kind, const adapter_group *g) {
    double alpha;
    if (!is_kind(kind, "lora") && !is_kind(kind, "loha") && !is_kind(kind, "lokr") && !is_kind(kind, "full"))
        return "a kind it does not know";
    if (has(g, "dora_scale")) return "DoRA, which it ignores";
    if (has(g, "lokr_t2")) return "Tucker's middle factor (lokr_t2)";
    if (is_kind(kind, "lokr") && inspection_rank(kind, g) == 1 && inspection_alpha(g, &alpha) && alpha != 1)
        return "LoKr of rank 1 whose alpha is ignored";
    return NULL;
}

const char *inspection_obstacle(loader program, const adapter_kind *kind, const adapter_group *g) {
    if (program != LOADER_WEBUI && (has(g, "bias") || has(g, "bias_indices"))) return "a residual beside the factors, which it leaves out";
    switch (program) {
    case LOADER_WEBUI: return webui_obstacle(kind, g);
    case LOADER_COMFYUI: return comfyui_obstacle(kind, g);
    case LOADER_DIFFUSERS: return diffusers_obstacle(kind, g);
    case LOADER_SDCPP: return sdcpp_obstacle(kind, g);
    case LOADER_COUNT: break;
    }
    return NULL;
}
