#include "lora/spelling.h"

#include "lora/kind.h"
#include "lora/modules.h"

#include <stdio.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

static bool starts_with(const char *text, const char *prefix) { return strncmp(text, prefix, strlen(prefix)) == 0; }

static bool ends_with(const char *text, const char *suffix) {
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

static bool copy(char out[SPELLING_SIZE], const char *text, size_t n) {
    if (n == 0 || n >= SPELLING_SIZE) return false;
    memcpy(out, text, n);
    out[n] = 0;
    return true;
}

/* ---- Flat names ---- */

typedef struct flat_prefix {
    const char *text;
    checkpoint_part model;
    adapter_style style;
} flat_prefix;

static const flat_prefix FLAT_PREFIXES[] = {
    {"lora_unet_", CHECKPOINT_UNET, ADAPTER_KOHYA},
    {"lora_te_", CHECKPOINT_TEXT_ENCODER, ADAPTER_KOHYA},
    {"lora_te1_", CHECKPOINT_TEXT_ENCODER, ADAPTER_KOHYA_TE1},
    {"oft_unet_", CHECKPOINT_UNET, ADAPTER_OFT_UNET},
};

typedef struct alias {
    const char *suffix, *part;
} alias;

/* Endings of dotted names. */
static const alias ALIASES[] = {
    {".lora_A.weight", "lora_down.weight"},
    {".lora_B.weight", "lora_up.weight"},
    {".lora_A.default.weight", "lora_down.weight"},
    {".lora_B.default.weight", "lora_up.weight"},
    {".lora.down.weight", "lora_down.weight"},
    {".lora.up.weight", "lora_up.weight"},
    {".lora_linear_layer.down.weight", "lora_down.weight"},
    {".lora_linear_layer.up.weight", "lora_up.weight"},
    {".lora_B.bias", "lora_B.bias"}, /* no kind has it: so that the module is refused */
    {".lora_magnitude_vector", "dora_scale"},
    {".lora_magnitude_vector.weight", "dora_scale"},
};

static const char *part_alias(const char *dot_part) {
    for (size_t i = 0; i < LENGTH(ALIASES); i++)
        if (strcmp(dot_part, ALIASES[i].suffix) == 0) return ALIASES[i].part;
    return dot_part + 1;
}

/* lora_unet_input_blocks_... becomes lora_unet_down_blocks_...; false: it was diffusers' spelling already. */
static bool original_to_diffusers(char module[SPELLING_SIZE]) {
    char diffusers[SPELLING_SIZE];
    if (!module_flat_from_ldm(module, diffusers, sizeof diffusers) || strcmp(diffusers, module) == 0) return false;
    memcpy(module, diffusers, sizeof diffusers);
    return true;
}

static bool read_flat(const char *key, spelling *out) {
    for (size_t i = 0; i < LENGTH(FLAT_PREFIXES); i++) {
        const flat_prefix *p = &FLAT_PREFIXES[i];
        if (!starts_with(key, p->text)) continue;
        const char *dot = strchr(key, '.');
        if (!dot || dot[1] == 0 || !copy(out->shown, key, (size_t)(dot - key))) return false;
        out->part = part_alias(dot);
        out->model = p->model;
        out->style = p->style;
        const char *path = out->shown + strlen(p->text);
        char full[SPELLING_SIZE + 16];
        bool bare_text = p->model == CHECKPOINT_TEXT_ENCODER && starts_with(path, "encoder_layers_");
        snprintf(full, sizeof full, "%s%s", bare_text ? "text_model_" : "", path);
        if (!module_flat_name(p->model, full, out->module, sizeof out->module)) return false;
        bool original = p->model == CHECKPOINT_UNET && original_to_diffusers(out->module);
        if (original && out->style == ADAPTER_KOHYA) out->style = ADAPTER_LDM;
        return true;
    }
    return false;
}

/* ---- Dotted names ---- */

/* Attention layers as attention processors named them, and what they are called in the U-Net and in the text encoder. */
static const struct {
    const char *processor, *unet, *text;
} PROCESSOR[] = {
    {"to_q_lora", "to_q", "q_proj"},
    {"to_k_lora", "to_k", "k_proj"},
    {"to_v_lora", "to_v", "v_proj"},
    {"to_out_lora", "to_out.0", "out_proj"},
};

/* ".lora_down.weight" and the like: a part of some kind under its own name. Bare "weight" and "bias" would take in every checkpoint. */
static const char *kind_part_suffix(const char *path, size_t *length) {
    for (const adapter_kind *const *kind = adapter_kinds(); *kind; kind++)
        for (const char *const *part = (*kind)->parts; *part; part++) {
            size_t n = strlen(path), m = strlen(*part);
            if (strcmp(*part, "weight") == 0 || strcmp(*part, "bias") == 0 || n < m + 2) continue;
            if (path[n - m - 1] == '.' && strcmp(path + n - m, *part) == 0) {
                *length = n - m - 1;
                return *part;
            }
        }
    return NULL;
}

static bool read_processor(const char *path, spelling *out) {
    bool down = ends_with(path, "_lora.down.weight");
    if (!down && !ends_with(path, "_lora.up.weight")) return false;
    out->part = down ? "lora_down.weight" : "lora_up.weight";
    size_t n = strlen(path) - strlen(down ? ".down.weight" : ".up.weight");
    for (size_t i = 0; i < LENGTH(PROCESSOR); i++) {
        size_t m = strlen(PROCESSOR[i].processor);
        if (n < m + 2 || strncmp(path + n - m, PROCESSOR[i].processor, m) != 0 || path[n - m - 1] != '.') continue;
        size_t stem = n - m - 1;
        if (stem > 10 && strncmp(path + stem - 10, ".processor", 10) == 0) stem -= 10;
        int written = snprintf(out->path, sizeof out->path, "%.*s.%s", (int)stem, path,
                               out->model == CHECKPOINT_UNET ? PROCESSOR[i].unet : PROCESSOR[i].text);
        out->style = ADAPTER_PROCESSOR;
        return written > 0 && (size_t)written < sizeof out->path;
    }
    return false;
}

static bool read_suffix(const char *path, spelling *out) {
    out->style = ADAPTER_DOTTED;
    for (size_t i = 0; i < LENGTH(ALIASES); i++)
        if (ends_with(path, ALIASES[i].suffix)) {
            out->part = ALIASES[i].part;
            return copy(out->path, path, strlen(path) - strlen(ALIASES[i].suffix));
        }
    size_t length;
    out->part = kind_part_suffix(path, &length);
    return out->part && copy(out->path, path, length);
}

static bool take(const char **p, const char *prefix) {
    if (!starts_with(*p, prefix)) return false;
    *p += strlen(prefix);
    return true;
}

static bool read_dotted(const char *key, checkpoint_part hint, spelling *out) {
    const char *path = key;
    take(&path, "base_model.model.");
    if (take(&path, "unet.") || take(&path, "diffusion_model.")) {
        out->model = CHECKPOINT_UNET;
    } else if (take(&path, "text_encoder.") || take(&path, "text_encoders.clip_l.transformer.")) {
        out->model = CHECKPOINT_TEXT_ENCODER;
    } else if (hint != CHECKPOINT_PARTS) {
        out->model = hint;
    } else {
        bool text = starts_with(path, "text_model.") || starts_with(path, "encoder.layers.");
        out->model = text ? CHECKPOINT_TEXT_ENCODER : CHECKPOINT_UNET;
    }
    take(&path, "base_model.model."); /* PEFT's wrapper around one model of a pipeline */
    if (!read_processor(path, out) && !read_suffix(path, out)) return false;
    char full[SPELLING_SIZE + 16];
    bool bare_text = out->model == CHECKPOINT_TEXT_ENCODER && starts_with(out->path, "encoder.");
    snprintf(full, sizeof full, "%s%s", bare_text ? "text_model." : "", out->path);
    snprintf(out->shown, sizeof out->shown, "%s", out->path);
    if (!module_flat_name(out->model, full, out->module, sizeof out->module)) return false;
    if (out->model == CHECKPOINT_UNET) original_to_diffusers(out->module);
    return true;
}

bool spelling_read(const char *key, checkpoint_part hint, spelling *out) {
    memset(out, 0, sizeof *out);
    return read_flat(key, out) || read_dotted(key, hint, out);
}
