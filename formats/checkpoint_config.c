/* The few facts about a model that its tensors' shapes do not tell: SD 1.5's for a single file, config.json's for a folder. */
#include "formats/checkpoint_internal.h"

#include "base/file.h"
#include "base/memory.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_SIZE_MAX ((size_t)4 << 20)
#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* Settings that would change the model's arithmetic: only SD 1.x' value is understood. A list means the value for every level. */
typedef struct fixed_setting {
    const char *key, *json;
} fixed_setting;

static const fixed_setting UNET_FIXED[] = {
    {"act_fn", "\"silu\""},
    {"center_input_sample", "false"},
    {"flip_sin_to_cos", "true"},
    {"freq_shift", "0"},
    {"downsample_padding", "1"},
    {"mid_block_scale_factor", "1"},
    {"layers_per_block", "2"},
    {"transformer_layers_per_block", "1"},
    {"class_embed_type", "null"},
    {"addition_embed_type", "null"},
    {"encoder_hid_dim_type", "null"},
    {"time_cond_proj_dim", "null"},
    {"resnet_time_scale_shift", "\"default\""},
    {"resnet_out_scale_factor", "1"},
    {"dual_cross_attention", "false"},
    {"only_cross_attention", "false"},
    {"use_linear_projection", "false"},
    {"time_embedding_type", "\"positional\""},
    {"conv_in_kernel", "3"},
    {"conv_out_kernel", "3"},
};

static const fixed_setting VAE_FIXED[] = {
    {"act_fn", "\"silu\""},     {"layers_per_block", "2"},       {"mid_block_add_attention", "true"},
    {"use_quant_conv", "true"}, {"use_post_quant_conv", "true"}, {"shift_factor", "null"},
};

static const fixed_setting SCHEDULER_FIXED[] = {
    {"trained_betas", "null"},
    {"rescale_betas_zero_snr", "false"},
};

/* ---- Reading values ---- */

/* An open config.json. */
typedef struct config_file {
    char *path;
    json_t *root;
} config_file;

static bool config_open(config_file *file, const char *folder, const char *name, error *err) {
    *file = (config_file){.path = memory_format("%s/%s", folder, name)};
    size_t size = 0;
    char *text = file_read_text(file->path, CONFIG_SIZE_MAX, &size, err);
    json_error_t problem;
    if (text) file->root = json_loadb(text, size, 0, &problem);
    if (text && !json_is_object(file->root)) {
        if (file->root)
            error_set(err, "%s: is not a JSON object", file->path);
        else
            error_set(err, "%s: line %d: %s", file->path, problem.line, problem.text);
        json_decref(file->root);
        file->root = NULL;
    }
    free(text);
    if (file->root) return true;
    free(file->path);
    return false;
}

static void config_close(config_file *file) {
    json_decref(file->root);
    free(file->path);
}

/* Reads a number that must lie in low..high; a missing or null one leaves *out alone. */
static bool config_number(const config_file *file, const char *key, double low, double high, double *out, error *err) {
    json_t *value = json_object_get(file->root, key);
    if (!value || json_is_null(value)) return true;
    double number = json_is_number(value) ? json_number_value(value) : NAN;
    if (!(number >= low && number <= high)) return error_set(err, "%s: %s must be a number from %g to %g", file->path, key, low, high);
    *out = number;
    return true;
}

static bool config_float(const config_file *file, const char *key, double low, double high, float *out, error *err) {
    double number = (double)*out;
    if (!config_number(file, key, low, high, &number, err)) return false;
    *out = (float)number;
    return true;
}

static bool config_int(const config_file *file, const char *key, int low, int high, int *out, error *err) {
    double number = *out;
    if (!config_number(file, key, low, high, &number, err)) return false;
    if (number != floor(number)) return error_set(err, "%s: %s must be a whole number", file->path, key);
    *out = (int)number;
    return true;
}

static bool setting_equal(json_t *value, json_t *allowed) {
    if (json_is_number(value) && json_is_number(allowed)) return json_number_value(value) == json_number_value(allowed);
    if (!json_is_array(value)) return json_equal(value, allowed);
    size_t i;
    json_t *element;
    json_array_foreach(value, i, element) if (!setting_equal(element, allowed)) return false;
    return true;
}

static bool config_fixed(const config_file *file, const fixed_setting *table, size_t count, error *err) {
    for (size_t i = 0; i < count; i++) {
        json_t *value = json_object_get(file->root, table[i].key);
        if (!value) continue;
        json_t *allowed = json_loads(table[i].json, JSON_DECODE_ANY, NULL);
        bool equal = setting_equal(value, allowed);
        json_decref(allowed);
        if (equal) continue;
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        error_set(err, "%s: %s is %.60s, which is not supported (Stable Diffusion 1.x has %s)", file->path, table[i].key, text ? text : "?",
                  table[i].json);
        free(text);
        return false;
    }
    return true;
}

/* ---- The parts ---- */

void checkpoint_config_default(checkpoint_config *config) {
    *config = (checkpoint_config){
        .unet_norm_groups = 32,
        .unet_norm_eps = 1e-5f,
        .text_activation = CHECKPOINT_QUICK_GELU,
        .text_norm_eps = 1e-5f,
        .vae_scaling_factor = 0.18215f,
        .vae_norm_groups = 32,
        .beta_start = 0.00085,
        .beta_end = 0.012,
        .beta_schedule = CHECKPOINT_SCALED_LINEAR,
        .train_timesteps = 1000,
    };
    for (int i = 0; i < CHECKPOINT_LEVELS_MAX; i++) config->unet_heads[i] = 8;
}

/* In diffusers' U-Net configurations `attention_head_dim` is the number of heads, for historical reasons; where `num_attention_heads`
   is given it wins. A number, or a list with one per level. */
static bool unet_heads_read(checkpoint_config *config, const config_file *file, error *err) {
    const char *key = "num_attention_heads";
    json_t *value = json_object_get(file->root, key);
    if (!value || json_is_null(value)) value = json_object_get(file->root, key = "attention_head_dim");
    if (!value || json_is_null(value)) return true;
    for (size_t i = 0; i < CHECKPOINT_LEVELS_MAX; i++) {
        json_t *heads = value;
        if (json_is_array(value)) {
            if (json_array_size(value) != (size_t)config->unet_levels)
                return error_set(err, "%s: %s has %zu values for %d levels", file->path, key, json_array_size(value), config->unet_levels);
            heads = json_array_get(value, i);
            if (!heads) break;
        }
        if (!json_is_integer(heads) || json_integer_value(heads) < 1 || json_integer_value(heads) > 1024)
            return error_set(err, "%s: %s must be whole numbers from 1 to 1024", file->path, key);
        config->unet_heads[i] = (int)json_integer_value(heads);
    }
    return true;
}

static bool unet_read(checkpoint_config *config, const char *folder, error *err) {
    config_file file;
    if (!config_open(&file, folder, "unet/config.json", err)) return false;
    bool ok = config_fixed(&file, UNET_FIXED, LENGTH(UNET_FIXED), err) && unet_heads_read(config, &file, err) &&
              config_int(&file, "norm_num_groups", 1, 1024, &config->unet_norm_groups, err) &&
              config_float(&file, "norm_eps", 0, 1, &config->unet_norm_eps, err);
    config_close(&file);
    return ok;
}

static bool activation_read(checkpoint_config *config, const config_file *file, error *err) {
    const char *name = json_string_value(json_object_get(file->root, "hidden_act"));
    if (!name || strcmp(name, "quick_gelu") == 0)
        config->text_activation = CHECKPOINT_QUICK_GELU;
    else if (strcmp(name, "gelu") == 0)
        config->text_activation = CHECKPOINT_GELU;
    else
        return error_set(err, "%s: hidden_act is %.60s; quick_gelu and gelu are supported", file->path, name);
    return true;
}

static bool text_read(checkpoint_config *config, const char *folder, error *err) {
    config_file file;
    if (!config_open(&file, folder, "text_encoder/config.json", err)) return false;
    json_t *inner = json_object_get(file.root, "text_config"); /* a whole CLIP's configuration has the text model's inside */
    if (json_is_object(inner)) {
        json_incref(inner);
        json_decref(file.root);
        file.root = inner;
    }
    bool ok = config_int(&file, "num_attention_heads", 1, 1024, &config->text_heads, err) && activation_read(config, &file, err) &&
              config_float(&file, "layer_norm_eps", 0, 1, &config->text_norm_eps, err);
    config_close(&file);
    return ok;
}

bool checkpoint_config_read_vae(checkpoint_config *config, const char *folder, error *err) {
    config_file file;
    if (!config_open(&file, folder, "config.json", err)) return false;
    bool ok = config_fixed(&file, VAE_FIXED, LENGTH(VAE_FIXED), err) &&
              config_int(&file, "norm_num_groups", 1, 1024, &config->vae_norm_groups, err) &&
              config_float(&file, "scaling_factor", 1e-6, 1e6, &config->vae_scaling_factor, err);
    config_close(&file);
    return ok;
}

static bool betas_read(checkpoint_config *config, const config_file *file, error *err) {
    const char *name = json_string_value(json_object_get(file->root, "beta_schedule"));
    if (!name || strcmp(name, "scaled_linear") == 0)
        config->beta_schedule = CHECKPOINT_SCALED_LINEAR;
    else if (strcmp(name, "linear") == 0)
        config->beta_schedule = CHECKPOINT_LINEAR;
    else
        return error_set(err, "%s: beta_schedule is %.60s; scaled_linear and linear are supported", file->path, name);
    return config_number(file, "beta_start", 1e-9, 0.999, &config->beta_start, err) &&
           config_number(file, "beta_end", 1e-9, 0.999, &config->beta_end, err) &&
           config_int(file, "num_train_timesteps", 1, 100000, &config->train_timesteps, err);
}

static bool scheduler_read(checkpoint_config *config, const char *folder, error *err) {
    static const char name[] = "scheduler/scheduler_config.json";
    char *path = memory_format("%s/%s", folder, name);
    bool there = file_exists(path);
    free(path);
    if (!there) return true; /* SD 1.5's own schedule */
    config_file file;
    if (!config_open(&file, folder, name, err)) return false;
    const char *prediction = json_string_value(json_object_get(file.root, "prediction_type"));
    bool ok = true;
    if (prediction && strcmp(prediction, "epsilon") != 0)
        ok = error_set(err, "%s: the model predicts %.40s; only models that predict the noise (epsilon) are supported", file.path,
                       prediction);
    ok = ok && config_fixed(&file, SCHEDULER_FIXED, LENGTH(SCHEDULER_FIXED), err) && betas_read(config, &file, err);
    config_close(&file);
    return ok;
}

static void tokenizer_find(checkpoint_config *config, const char *folder) {
    char *vocabulary = memory_format("%s/tokenizer/vocab.json", folder), *merges = memory_format("%s/tokenizer/merges.txt", folder);
    if (file_exists(vocabulary) && file_exists(merges)) config->tokenizer = memory_format("%s/tokenizer", folder);
    free(vocabulary);
    free(merges);
}

bool checkpoint_config_read(checkpoint_config *config, const char *folder, error *err) {
    tokenizer_find(config, folder);
    return unet_read(config, folder, err) && text_read(config, folder, err) && scheduler_read(config, folder, err);
}

/* ---- Against the shapes ---- */

static bool unet_heads_check(const checkpoint *c, error *err) {
    for (int level = 0; level < c->config.unet_levels; level++) {
        char name[128];
        snprintf(name, sizeof name, "down_blocks.%d.attentions.0.transformer_blocks.0.attn1.to_q.weight", level);
        const checkpoint_tensor *q = checkpoint_find(c, CHECKPOINT_UNET, name);
        if (q && q->dims[0] % c->config.unet_heads[level] != 0)
            return error_set(err, "%s: %s: %" PRId64 " channels cannot be split into %d heads%s", c->path, q->stored, q->dims[0],
                             c->config.unet_heads[level],
                             c->folder ? "; see unet/config.json" : "; such a model must be a diffusers folder");
    }
    return true;
}

static bool groups_check(const checkpoint *c, checkpoint_part part, const char *name, int groups, error *err) {
    const checkpoint_tensor *norm = checkpoint_need_shape(c, part, name, 1, (int64_t[]){-1}, err);
    if (!norm) return false;
    if (norm->dims[0] % groups == 0) return true;
    return error_set(err, "%s: %s: %" PRId64 " channels cannot be split into %d groups", c->parts[part].path, norm->stored, norm->dims[0],
                     groups);
}

bool checkpoint_config_finish(checkpoint *c, error *err) {
    const checkpoint_tensor *norm = checkpoint_need(c, CHECKPOINT_TEXT_ENCODER, "text_model.final_layer_norm.weight", err);
    if (!norm) return false;
    int64_t width = norm->dims[0];
    bool given = c->config.text_heads > 0;
    if (!given) c->config.text_heads = width % 64 == 0 ? (int)(width / 64) : 0;
    if (c->config.text_heads < 1 || width % c->config.text_heads != 0)
        return error_set(err, "%s: the text encoder's width %" PRId64 " cannot be split into heads%s", c->path, width,
                         given ? "; see text_encoder/config.json" : " of width 64; such a model must be a diffusers folder");
    return unet_heads_check(c, err) && groups_check(c, CHECKPOINT_UNET, "conv_norm_out.weight", c->config.unet_norm_groups, err) &&
           groups_check(c, CHECKPOINT_VAE, "decoder.conv_norm_out.weight", c->config.vae_norm_groups, err);
}
