/* sd-scripts' metadata (formats.md 5.1 and 5.2). Nothing in it depends on when or where a training ran: the same training gives the same
   bytes. So ss_session_id, the start and end times and modelspec.date are left out, and folders are named, never their paths. */
#include "base/file.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "train/internal.h"

#include <ctype.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void put(train_metadata *m, const char *key, const char *value) {
    m->pairs = memory_grow(m->pairs, m->count + 1, sizeof *m->pairs);
    m->pairs[m->count++] = (safetensors_pair){memory_string(key), memory_string(value)};
}

static void put_int(train_metadata *m, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    put(m, key, text);
}

static void put_number(train_metadata *m, const char *key, double value) {
    char text[32];
    metadata_number(value, text);
    put(m, key, text);
}

static void put_number_or_none(train_metadata *m, const char *key, double value) {
    if (value > 0)
        put_number(m, key, value);
    else
        put(m, key, "None");
}

static void put_bool(train_metadata *m, const char *key, bool value) { put(m, key, value ? "True" : "False"); }

static void put_json(train_metadata *m, const char *key, json_t *value) {
    char *text = json_dumps(value, JSON_PRESERVE_ORDER);
    put(m, key, text ? text : "{}");
    free(text);
    json_decref(value);
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* The name of the folder an image lies in. */
static char *folder_of(const dataset_image *image) {
    char *path = memory_string(image->path), *slash = strrchr(path, '/');
    if (slash) *slash = 0;
    char *name = memory_string(slash ? base_name(path) : ".");
    free(path);
    return name;
}

static json_t *child(json_t *parent, const char *key, json_t *fresh) {
    json_t *value = json_object_get(parent, key);
    if (value) {
        json_decref(fresh);
        return value;
    }
    json_object_set_new(parent, key, fresh);
    return fresh;
}

static void count_up(json_t *object, const char *key, json_int_t by) {
    json_int_t so_far = json_integer_value(json_object_get(object, key));
    json_object_set_new(object, key, json_integer(so_far + by));
}

/* Captions are split at commas, trimmed and lower-cased (ASCII), as sd-scripts counts tags. */
static void count_tags(json_t *tags, const char *caption) {
    char *text = memory_string(caption), *rest = NULL;
    for (char *tag = strtok_r(text, ",", &rest); tag; tag = strtok_r(NULL, ",", &rest)) {
        while (isspace((unsigned char)*tag)) tag++;
        char *end = tag + strlen(tag);
        while (end > tag && isspace((unsigned char)end[-1])) *--end = 0;
        for (char *c = tag; *c; c++) *c = (char)((unsigned char)*c < 128 ? tolower((unsigned char)*c) : *c);
        if (*tag) count_up(tags, tag, 1);
    }
    free(text);
}

static void put_data(train_metadata *m, const trainer *t) {
    const dataset *data = t->data;
    json_t *frequency = json_object(), *folders = json_object(), *buckets = json_object();
    double error_sum = 0;
    for (size_t i = 0; i < data->count; i++) {
        const dataset_image *image = &data->images[i];
        char *folder = folder_of(image);
        count_tags(child(frequency, folder, json_object()), image->caption);
        json_t *entry = child(folders, folder, json_object());
        json_object_set_new(entry, "n_repeats", json_integer(image->repeats));
        count_up(entry, "img_count", 1);
        free(folder);
        bucket_size size = data->buckets[image->bucket];
        error_sum += fabs((double)size.width / size.height - (double)image->width / image->height);
    }
    for (size_t b = 0, shown = 0; b < data->bucket_count; b++) {
        if (!data->bucket_items[b]) continue;
        char key[24];
        snprintf(key, sizeof key, "%zu", shown++);
        json_object_set_new(buckets, key,
                            json_pack("{s:[ii], s:I}", "resolution", data->buckets[b].width, data->buckets[b].height, "count",
                                      (json_int_t)data->bucket_items[b]));
    }
    put_json(m, "ss_tag_frequency", frequency);
    put_json(m, "ss_dataset_dirs", folders);
    put(m, "ss_reg_dataset_dirs", "{}");
    put_json(m, "ss_bucket_info", json_pack("{s:o, s:f}", "buckets", buckets, "mean_img_ar_error", error_sum / (double)data->count));
    put_int(m, "ss_num_train_images", (int64_t)data->report.items);
    put_int(m, "ss_num_reg_images", 0);
    put_bool(m, "ss_flip_aug", data->flip);
    put_bool(m, "ss_enable_bucket", data->bucket_count > 1);
}

/* First 8 hex digits of the SHA-256 of the 64 KiB at 1 MiB. */
static void put_model(train_metadata *m, const trainer *t) {
    const checkpoint *c = &t->pipeline->model;
    put(m, "ss_sd_model_name", base_name(c->path));
    file_map map;
    if (c->folder || !file_map_open(&map, c->path, NULL)) return;
    if (map.size >= 0x110000) {
        sha256 hash;
        char hex[65];
        sha256_init(&hash);
        sha256_update(&hash, map.data + 0x100000, 0x10000);
        sha256_hex(&hash, hex);
        hex[8] = 0;
        put(m, "ss_sd_model_hash", hex);
    }
    file_map_close(&map);
}

static void put_settings(train_metadata *m, const trainer *t) {
    const train_options *o = &t->options;
    char text[160];
    put_int(m, "ss_steps", t->step);
    put_int(m, "ss_epoch", t->batches ? (t->step * o->learner.accumulation + t->batches - 1) / t->batches : 0);
    put_int(m, "ss_seed", (int64_t)o->seed);
    put_number(m, "ss_learning_rate", o->unet_rate);
    put_number(m, "ss_unet_lr", o->unet_rate);
    put_number(m, "ss_text_encoder_lr", o->text_rate);
    snprintf(text, sizeof text, "torch.optim.adamw.AdamW(weight_decay=%g,betas=(%g,%g))", (double)o->learner.weight_decay,
             (double)o->learner.beta1, (double)o->learner.beta2);
    put(m, "ss_optimizer", text);
    put(m, "ss_lr_scheduler", rate_schedule_name(o->schedule));
    put_int(m, "ss_lr_warmup_steps", (int64_t)(o->warmup < 1 ? o->warmup * (double)t->steps : o->warmup));
    put_number(m, "ss_max_grad_norm", (double)o->learner.max_grad_norm);
    put_int(m, "ss_max_train_steps", t->steps);
    put_int(m, "ss_num_epochs", train_epochs(t));
    put_int(m, "ss_num_batches_per_epoch", t->batches);
    put_int(m, "ss_gradient_accumulation_steps", o->learner.accumulation);
    put_int(m, "ss_batch_size_per_device", o->batch_size);
    put_int(m, "ss_total_batch_size", o->batch_size * o->learner.accumulation);
    snprintf(text, sizeof text, "(%d, %d)", o->width, o->height);
    put(m, "ss_resolution", text);
    if (o->learner.clip_skip > 1)
        put_int(m, "ss_clip_skip", o->learner.clip_skip);
    else
        put(m, "ss_clip_skip", "None");
    put_int(m, "ss_max_token_length", 75);
    put(m, "ss_mixed_precision", strcmp(device_precision(t->pipeline->device), "fp32") ? device_precision(t->pipeline->device) : "no");
    put(m, "ss_cache_latents", "True");
    put(m, "ss_loss_type", "l2");
    put(m, "ss_prior_loss_weight", "1.0");
    put_number_or_none(m, "ss_network_dropout", o->adapter.stepwise.network_dropout);
    put_number_or_none(m, "ss_scale_weight_norms", o->adapter.stepwise.max_norm);
    put(m, "ss_training_comment", o->comment ? o->comment : "None");
}

static void put_modelspec(train_metadata *m, const trainer *t, const char *name) {
    char size[32];
    snprintf(size, sizeof size, "%dx%d", t->options.width, t->options.height);
    put(m, "modelspec.sai_model_spec", "1.0.1");
    put(m, "modelspec.architecture", "stable-diffusion-v1/lora");
    put(m, "modelspec.implementation", "diffusers");
    put(m, "modelspec.implementation_version", "vulora/" VULORA_VERSION);
    put(m, "modelspec.title", name);
    put(m, "modelspec.resolution", size);
    put(m, "modelspec.prediction_type", "epsilon");
    if (t->options.learner.clip_skip > 1) put_int(m, "modelspec.encoder_layer", t->options.learner.clip_skip);
}

train_metadata train_metadata_make(const trainer *t, const char *name) {
    train_metadata m = {0};
    put(&m, "ss_v2", "False");
    put(&m, "ss_base_model_version", "sd_v1");
    put_modelspec(&m, t, name);
    if (!t->options.metadata) return m;
    put(&m, "ss_output_name", name);
    put_model(&m, t);
    put_settings(&m, t);
    put_data(&m, t);
    return m;
}

/* ---- ss_network_args ---- */

static void put_switch(train_metadata *m, const char *key, bool value) {
    if (value) put_bool(m, key, true);
}

static void put_text(train_metadata *m, const char *key, const char *value) {
    if (value) put(m, key, value);
}

static void put_positive(train_metadata *m, const char *key, double value) {
    if (value > 0) put_number(m, key, value);
}

static void put_rules(train_metadata *m, const char *key, adapter_rules rules) {
    char *all = memory_string("");
    for (int i = 0; i < rules.count; i++) {
        char *longer = memory_format("%s%s%s", all, i ? " " : "", rules.item[i]);
        free(all);
        all = longer;
    }
    if (*all) put(m, key, all);
    free(all);
}

/* LoRA+: one ratio where both parts have the same. */
static void put_ratios(train_metadata *m, const adapter_options *a) {
    double unet = a->up_ratio[CHECKPOINT_UNET], text = a->up_ratio[CHECKPOINT_TEXT_ENCODER];
    bool same = !(unet < text) && !(unet > text);
    put_positive(m, "loraplus_lr_ratio", same ? unet : 0);
    put_positive(m, "loraplus_unet_lr_ratio", same ? 0 : unet);
    put_positive(m, "loraplus_text_encoder_lr_ratio", same ? 0 : text);
}

/* LyCORIS' name of a set of modules, or NULL: it has none. */
static const char *preset_of(const char *targets) {
    const char *name;
    if (!targets || strcmp(targets, "blocks") == 0) return NULL;
    if (strcmp(targets, "attn") == 0) return "attn-only";
    for (int i = 0; (name = adapter_targets_at(i)); i++)
        if (strcmp(name, targets) == 0) return name;
    return NULL;
}

train_metadata train_network_arguments(const trainer *t, bool *lycoris) {
    train_metadata m = {0};
    const adapter_options *a = &t->options.adapter;
    if (a->factor) put_int(&m, "factor", a->factor);
    put_switch(&m, "decompose_both", a->decompose_both);
    put_switch(&m, "full_matrix", a->full_matrix);
    put_positive(&m, "constraint", a->constraint);
    put_switch(&m, "rescaled", a->rescaled);
    put_switch(&m, "use_tucker", a->tucker);
    put_switch(&m, "dora_wd", a->dora);
    if (a->dora) put_bool(&m, "wd_on_output", false);
    put_switch(&m, "use_scalar", a->trained_scalar);
    put_switch(&m, "rs_lora", a->rank_stabilised);
    *lycoris = m.count > 0;
    if (*lycoris || strcmp(t->adapter->trainee->module, "lycoris.kohya") == 0) put_text(&m, "preset", preset_of(a->targets));
    put_ratios(&m, a);
    put_text(&m, "block_dims", a->block_dims);
    put_text(&m, "block_alphas", a->block_alphas);
    put_text(&m, "conv_block_dims", a->conv_block_dims);
    put_text(&m, "conv_block_alphas", a->conv_block_alphas);
    put_text(&m, "down_lr_weight", a->down_lr_weight);
    put_text(&m, "mid_lr_weight", a->mid_lr_weight);
    put_text(&m, "up_lr_weight", a->up_lr_weight);
    put_positive(&m, "block_lr_zero_threshold", a->block_lr_zero_threshold);
    put_rules(&m, "module_rank", a->module_rank);
    put_rules(&m, "module_alpha", a->module_alpha);
    put_rules(&m, "module_lr", a->module_lr);
    if (a->init != ADAPTER_INIT_DEFAULT) put(&m, "init", adapter_init_at((int)a->init));
    return m;
}

void train_metadata_free(train_metadata *m) {
    for (size_t i = 0; i < m->count; i++) {
        free((void *)(uintptr_t)m->pairs[i].key);
        free((void *)(uintptr_t)m->pairs[i].value);
    }
    free(m->pairs);
    *m = (train_metadata){0};
}
