#include "lora/foreign.h"

#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

static bool starts_with(const char *text, const char *prefix) { return strncmp(text, prefix, strlen(prefix)) == 0; }

/* Words in tensor names that only adapters for other models have; the first row that matches counts. */
static const struct {
    const char *word, *model;
} OTHER_MODELS[] = {
    {"individual_token_refiner", "HunyuanVideo"},
    {"distilled_guidance_layer", "Chroma"},
    {"double_blocks", "Flux"},
    {"double_stream_blocks", "HiDream"},
    {"single_transformer_blocks", "Flux"},
    {"joint_blocks", "Stable Diffusion 3"},
    {"lora_te3_", "Stable Diffusion 3 or Flux"},
    {"text_encoder_3.", "Stable Diffusion 3 or Flux"},
    {"img_mlp", "Qwen-Image"},
    {"noise_refiner", "Lumina or Z-Image"},
    {"lora_unet_layers_", "Lumina or Z-Image"},
    {"_cross_attn_q_proj", "Anima or Cosmos"},
    {"_cross_attn_", "Wan"},
    {".cross_attn.", "Wan"},
    {"adaln_single", "PixArt"},
    {"transformer.transformer_blocks.", "Stable Diffusion 3 or Flux"},
    {"lora_transformer_", "Stable Diffusion 3, Flux or another transformer"},
    {"lora_prior_", "Stable Cascade"},
    {"lora_te2_", "SDXL"},
    {"text_encoder_2.", "SDXL"},
    {"transformer_blocks_1_", "SDXL"},
    {"transformer_blocks.1.", "SDXL"},
    {"lora_unet_label_emb_", "SDXL"},
    {"lora_unet_add_embedding_", "SDXL"},
    {"transformer.blocks.", "Wan or another transformer model"},
    {"diffusion_model.layers.", "another transformer model"},
    {"diffusion_model.blocks.", "a video or transformer model"},
    {"lora_unet_blocks_", "a video or transformer model"},
};

/* What trainers write about the base model: value begins so. */
static const struct {
    const char *key, *begin, *model;
} OTHER_METADATA[] = {
    {"ss_v2", "True", "Stable Diffusion 2"},
    {"ss_base_model_version", "sd_v2", "Stable Diffusion 2"},
    {"ss_base_model_version", "sdxl", "SDXL"},
    {"ss_base_model_version", "sd3", "Stable Diffusion 3"},
    {"ss_base_model_version", "flux", "Flux"},
    {"ss_base_model_version", "lumina", "Lumina"},
    {"ss_base_model_version", "hunyuan", "Hunyuan"},
    {"ss_base_model_version", "anima", "Anima"},
    {"ss_base_model_version", "wan", "Wan"},
    {"ss_base_model_version", "qwen", "Qwen-Image"},
    {"modelspec.architecture", "stable-diffusion-v2", "Stable Diffusion 2"},
    {"modelspec.architecture", "stable-diffusion-xl", "SDXL"},
    {"modelspec.architecture", "stable-diffusion-v3", "Stable Diffusion 3"},
    {"modelspec.architecture", "stable-diffusion-3", "Stable Diffusion 3"},
    {"modelspec.architecture", "flux", "Flux"},
    {"modelspec.architecture", "Flux", "Flux"},
    {"modelspec.architecture", "lumina", "Lumina"},
    {"modelspec.architecture", "hunyuan", "Hunyuan"},
    {"modelspec.architecture", "wan", "Wan"},
    {"modelspec.architecture", "qwen", "Qwen-Image"},
    {"modelspec.architecture", "chroma", "Chroma"},
};

static const char *const CHECKPOINT_NAMES[] = {
    "model.diffusion_model.", "first_stage_model.",     "cond_stage_model.",      "conditioner.embedders.",
    "conv_in.weight",         "decoder.conv_in.weight", "text_model.embeddings.", "unet.conv_in.weight",
};

static bool refuse_model(const safetensors *st, const char *model, const char *evidence, error *err) {
    return error_set(err, "%s: is an adapter for %s (%s), not for Stable Diffusion 1.x", st->path, model, evidence);
}

static bool is_checkpoint(const char *name) {
    if (strstr(name, "lora_") || strstr(name, ".lora.") || strstr(name, "hada_") || strstr(name, "lokr_")) return false;
    for (size_t i = 0; i < LENGTH(CHECKPOINT_NAMES); i++)
        if (starts_with(name, CHECKPOINT_NAMES[i])) return true;
    return false;
}

/* Embeddings of new words: webui's and diffusers' forms, alone in the file. */
static bool is_textual_inversion(const safetensors *st) {
    if (st->count == 0 || st->count > 4) return false;
    for (size_t i = 0; i < st->count; i++) {
        const safetensors_tensor *t = &st->tensors[i];
        bool named = strcmp(t->name, "emb_params") == 0 || starts_with(t->name, "string_to_param") || strcmp(t->name, "clip_l") == 0 ||
                     strcmp(t->name, "clip_g") == 0 || t->name[0] == '<';
        bool looks = !strchr(t->name, '.') && !starts_with(t->name, "lora_") && (t->rank == 1 || (t->rank == 2 && t->dims[0] <= 225));
        if (named || (looks && st->count == 1)) return true;
    }
    return false;
}

bool foreign_check(const safetensors *st, error *err) {
    if (st->count == 0) return error_set(err, "%s: has no tensors in it", st->path);
    for (size_t i = 0; i < LENGTH(OTHER_METADATA); i++) {
        const char *value = safetensors_metadata(st, OTHER_METADATA[i].key);
        if (value && starts_with(value, OTHER_METADATA[i].begin))
            return refuse_model(st, OTHER_METADATA[i].model, OTHER_METADATA[i].key, err);
    }
    for (size_t i = 0; i < st->count; i++)
        if (is_checkpoint(st->tensors[i].name))
            return error_set(err,
                             "%s: is a model or a part of one (tensor %s), not an adapter; give a whole model as --model, a VAE as --vae",
                             st->path, st->tensors[i].name);
    for (size_t row = 0; row < LENGTH(OTHER_MODELS); row++)
        for (size_t i = 0; i < st->count; i++)
            if (strstr(st->tensors[i].name, OTHER_MODELS[row].word))
                return refuse_model(st, OTHER_MODELS[row].model, st->tensors[i].name, err);
    if (is_textual_inversion(st))
        return error_set(err, "%s: is a textual inversion (an embedding of a word), not a LoRA; this version does not read those",
                         st->path);
    return true;
}
