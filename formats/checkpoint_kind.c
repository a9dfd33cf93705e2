/* What a file or folder is, when it is not a Stable Diffusion 1.x model: the user is told by name. */
#include "formats/checkpoint_internal.h"

#include "base/file.h"
#include "base/memory.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SD1_WANTED "a Stable Diffusion 1.x model is needed"
#define SD2 "a Stable Diffusion 2 model"
#define SDXL "a Stable Diffusion XL model"
#define SD3 "a Stable Diffusion 3 model"
#define FLUX "a Flux model"
#define ADAPTER "an adapter (LoRA or of its family), not a model; give it with --lora"

typedef enum match { PREFIX, INSIDE, WHOLE } match;

static const struct {
    match how;
    const char *text, *what;
} FOREIGN_TENSORS[] = {
    {PREFIX, "cond_stage_model.model.", SD2},
    {PREFIX, "conditioner.embedders.", SDXL},
    {PREFIX, "model.diffusion_model.label_emb.", SDXL},
    {PREFIX, "add_embedding.", SDXL},
    {INSIDE, "joint_blocks.", SD3},
    {INSIDE, "double_blocks.", FLUX},
    {INSIDE, "single_transformer_blocks.", FLUX},
    {PREFIX, "lora_unet_", ADAPTER},
    {PREFIX, "lora_te", ADAPTER},
    {INSIDE, ".lora_down.", ADAPTER},
    {INSIDE, ".lora_up.", ADAPTER},
    {INSIDE, ".lora_A.", ADAPTER},
    {INSIDE, ".lora.down.", ADAPTER},
    {INSIDE, "_lora.down.", ADAPTER},
    {INSIDE, ".hada_w1", ADAPTER},
    {INSIDE, ".lokr_w1", ADAPTER},
    {PREFIX, "control_model.", "a ControlNet"},
    {PREFIX, "controlnet_", "a ControlNet"},
    {PREFIX, "input_hint_block.", "a ControlNet"},
    {WHOLE, "emb_params", "a textual inversion embedding"},
    {PREFIX, "string_to_param", "a textual inversion embedding"},
    {INSIDE, "motion_modules.", "an AnimateDiff motion module"},
    {WHOLE, "v_pred", "a model trained for v-prediction"},
    {PREFIX, "time_embedding.cond_proj.", "a distilled latent consistency model"},
    {PREFIX, "model.diffusion_model.time_embed.cond_proj.", "a distilled latent consistency model"},
};

static const struct {
    const char *text, *what;
} FOREIGN_PIPELINES[] = {
    {"XL", SDXL},
    {"StableDiffusion3", SD3},
    {"Flux", FLUX},
    {"Inpaint", "an inpainting model"},
    {"InstructPix2Pix", "an instruct-pix2pix model"},
    {"ControlNet", "a ControlNet pipeline"},
    {"LatentConsistency", "a distilled latent consistency model"},
    {"Depth2Img", "a depth-to-image model"},
    {"Upscale", "an upscaler"},
};

#define LENGTH(array) (sizeof(array) / sizeof *(array))

static bool name_matches(const char *name, match how, const char *text) {
    if (how == PREFIX) return strncmp(name, text, strlen(text)) == 0;
    return how == INSIDE ? strstr(name, text) != NULL : strcmp(name, text) == 0;
}

static bool foreign(const char *path, const char *what, error *err) { return error_set(err, "%s: is %s; " SD1_WANTED, path, what); }

bool checkpoint_kind_check_file(const safetensors *st, error *err) {
    for (size_t k = 0; k < LENGTH(FOREIGN_TENSORS); k++)
        for (size_t i = 0; i < st->count; i++)
            if (name_matches(st->tensors[i].name, FOREIGN_TENSORS[k].how, FOREIGN_TENSORS[k].text))
                return foreign(st->path, FOREIGN_TENSORS[k].what, err);
    return true;
}

/* ---- Folders ---- */

static bool has_entry(const char *folder, const char *name) {
    char *path = memory_format("%s/%s", folder, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

/* The pipeline's class in model_index.json, if that file can be read. */
static bool pipeline_check(const char *folder, error *err) {
    char *path = memory_format("%s/model_index.json", folder);
    json_t *index = json_load_file(path, 0, NULL);
    free(path);
    const char *class = json_string_value(json_object_get(index, "_class_name"));
    bool ok = true;
    for (size_t k = 0; class && ok && k < LENGTH(FOREIGN_PIPELINES); k++)
        if (strstr(class, FOREIGN_PIPELINES[k].text)) ok = foreign(folder, FOREIGN_PIPELINES[k].what, err);
    json_decref(index);
    return ok;
}

bool checkpoint_kind_check_folder(const char *folder, error *err) {
    if (!pipeline_check(folder, err)) return false;
    if (has_entry(folder, "text_encoder_2")) return foreign(folder, SDXL, err);
    if (has_entry(folder, "unet")) return true;
    if (has_entry(folder, "transformer")) return foreign(folder, "a transformer model (Flux, Stable Diffusion 3 or of their family)", err);
    if (has_entry(folder, "adapter_config.json") || has_entry(folder, "pytorch_lora_weights.safetensors"))
        return foreign(folder, ADAPTER, err);
    if (has_entry(folder, "config.json") &&
        (has_entry(folder, "diffusion_pytorch_model.safetensors") || has_entry(folder, "model.safetensors")))
        return error_set(err, "%s: is one part of a diffusers model; give the folder above it, which has unet, vae and text_encoder in it",
                         folder);
    return error_set(err, "%s: is not a diffusers model: it has no folder unet; give such a folder or a .safetensors file", folder);
}

/* ---- The parts ---- */

/* Tensors whose presence shows that a part is there. */
static const struct {
    checkpoint_part part;
    const char *name;
} SENTINELS[] = {
    {CHECKPOINT_UNET, "conv_in.weight"},
    {CHECKPOINT_UNET, "conv_out.weight"},
    {CHECKPOINT_VAE, "encoder.conv_in.weight"},
    {CHECKPOINT_VAE, "decoder.conv_in.weight"},
    {CHECKPOINT_VAE, "quant_conv.weight"},
    {CHECKPOINT_VAE, "post_quant_conv.weight"},
    {CHECKPOINT_TEXT_ENCODER, "text_model.embeddings.token_embedding.weight"},
    {CHECKPOINT_TEXT_ENCODER, "text_model.final_layer_norm.weight"},
};

/* What a file without any U-Net in its right place is. */
static bool no_unet(const checkpoint *c, error *err) {
    const safetensors *st = &c->files[0];
    static const struct {
        const char *name, *what;
    } alone[] = {
        {"conv_in.weight", "a U-Net alone, in diffusers' spelling; give the diffusers folder it belongs to"},
        {"input_blocks.0.0.weight", "a U-Net alone, without VAE and text encoder; give the full checkpoint"},
        {"diffusion_model.input_blocks.0.0.weight", "a U-Net alone, without VAE and text encoder; give the full checkpoint"},
        {"decoder.conv_in.weight", "a VAE alone; give it with --vae, and a full checkpoint with --model"},
        {"first_stage_model.decoder.conv_in.weight", "a VAE alone; give it with --vae, and a full checkpoint with --model"},
        {"text_model.final_layer_norm.weight", "a text encoder alone; give the full checkpoint"},
        {"final_layer_norm.weight", "a text encoder alone; give the full checkpoint"},
    };
    for (size_t i = 0; i < LENGTH(alone); i++)
        if (safetensors_find(st, alone[i].name)) return error_set(err, "%s: is %s", c->path, alone[i].what);
    if (st->count == 0) return error_set(err, "%s: has no tensors; " SD1_WANTED, c->path);
    return error_set(err, "%s: is not a Stable Diffusion 1.x model: it has no model.diffusion_model.* (its first tensor is %.160s)",
                     c->path, st->tensors[0].name);
}

static bool parts_present(const checkpoint *c, error *err) {
    static const char *const way_out[CHECKPOINT_PARTS] = {"give the full checkpoint", "add one with --vae", "give the full checkpoint"};
    if (!c->folder && c->parts[CHECKPOINT_UNET].count == 0) return no_unet(c, err);
    for (int p = 0; p < CHECKPOINT_PARTS; p++)
        if (c->parts[p].count == 0)
            return error_set(err, "%s: has no %s; %s", c->path, checkpoint_part_name((checkpoint_part)p), way_out[p]);
    for (size_t i = 0; i < LENGTH(SENTINELS); i++)
        if (!checkpoint_need(c, SENTINELS[i].part, SENTINELS[i].name, err)) return false;
    return true;
}

static bool unet_input_check(const checkpoint *c, error *err) {
    const checkpoint_tensor *conv = checkpoint_need_shape(c, CHECKPOINT_UNET, "conv_in.weight", 4, (int64_t[]){-1, -1, 3, 3}, err);
    if (!conv) return false;
    if (conv->dims[1] == 9) return foreign(c->path, "an inpainting model (its U-Net takes 9 channels)", err);
    if (conv->dims[1] == 8) return foreign(c->path, "an instruct-pix2pix model (its U-Net takes 8 channels)", err);
    if (conv->dims[1] != 4) return error_set(err, "%s: its U-Net takes %" PRId64 " channels; " SD1_WANTED " (4)", c->path, conv->dims[1]);
    return true;
}

static bool context_check(const checkpoint *c, error *err) {
    static const char k[] = "attn2.to_k.weight";
    const checkpoint_table *unet = &c->parts[CHECKPOINT_UNET];
    const checkpoint_tensor *norm =
        checkpoint_need_shape(c, CHECKPOINT_TEXT_ENCODER, "text_model.final_layer_norm.weight", 1, (int64_t[]){-1}, err);
    if (!norm) return false;
    for (size_t i = 0; i < unet->count; i++) {
        const checkpoint_tensor *t = &unet->tensors[i];
        size_t n = strlen(t->name);
        if (n < sizeof k || strcmp(t->name + n - (sizeof k - 1), k) != 0 || t->rank != 2) continue;
        if (t->dims[1] == 1024) return foreign(c->path, SD2, err);
        if (t->dims[1] == 2048) return foreign(c->path, SDXL, err);
        if (t->dims[1] != norm->dims[0])
            return error_set(err,
                             "%s: the U-Net takes text states of width %" PRId64 " (%s), the text encoder gives %" PRId64
                             "; the parts are of different models",
                             c->path, t->dims[1], t->stored, norm->dims[0]);
    }
    return true;
}

static bool latents_check(checkpoint *c, error *err) {
    const checkpoint_tensor *conv = checkpoint_need_shape(c, CHECKPOINT_VAE, "decoder.conv_in.weight", 4, (int64_t[]){-1, -1, 3, 3}, err);
    if (!conv) return false;
    if (conv->dims[1] != 4)
        return error_set(err, "%s: the VAE has %" PRId64 " latent channels, those of Stable Diffusion 1.x have 4; give another with --vae",
                         c->parts[CHECKPOINT_VAE].path, conv->dims[1]);
    c->config.vae_latent_channels = (int)conv->dims[1];
    return true;
}

static bool levels_count(checkpoint *c, error *err) {
    const checkpoint_table *unet = &c->parts[CHECKPOINT_UNET];
    int levels = 0;
    for (size_t i = 0; i < unet->count; i++) {
        int level;
        if (sscanf(unet->tensors[i].name, "down_blocks.%4d.", &level) == 1 && level >= levels) levels = level + 1;
    }
    if (levels < 1 || levels > CHECKPOINT_LEVELS_MAX)
        return error_set(err, "%s: the U-Net has %d levels, 1 to %d are supported", c->path, levels, CHECKPOINT_LEVELS_MAX);
    c->config.unet_levels = levels;
    return true;
}

bool checkpoint_kind_check_parts(checkpoint *c, error *err) {
    return parts_present(c, err) && unet_input_check(c, err) && context_check(c, err) && latents_check(c, err) && levels_count(c, err);
}
