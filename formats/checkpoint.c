#include "formats/checkpoint.h"

#include "base/file.h"
#include "base/memory.h"
#include "formats/checkpoint_internal.h"
#include "formats/checkpoint_names.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define NAME_SIZE 256

/* One row a part: what messages call it, its prefix in a single file, its folder in a diffusers model. */
static const struct {
    const char *name, *prefix, *folder;
} PARTS[CHECKPOINT_PARTS] = {
    [CHECKPOINT_UNET] = {"U-Net", "model.diffusion_model.", "unet"},
    [CHECKPOINT_VAE] = {"VAE", "first_stage_model.", "vae"},
    [CHECKPOINT_TEXT_ENCODER] = {"text encoder", "cond_stage_model.transformer.", "text_encoder"},
};

const char *checkpoint_part_name(checkpoint_part part) { return PARTS[part].name; }

/* ---- Taking tensors in ---- */

static bool part_translate(checkpoint_part part, const char *name, unsigned vae_levels, char *out, size_t size) {
    if (part == CHECKPOINT_UNET) return checkpoint_unet_name(name, out, size);
    if (part == CHECKPOINT_VAE) return checkpoint_vae_name(name, vae_levels, out, size);
    return checkpoint_text_name(name, out, size);
}

/* Data that cannot be used in place is copied: less aligned than its type (headers of early writers were not padded), or F64. */
static bool tensor_settle(checkpoint *c, checkpoint_tensor *t, error *err) {
    bool wide = t->type == DTYPE_F64;
    if (!wide && (uintptr_t)t->data % dtype_size(t->type) == 0) return true;
    size_t bytes = wide ? t->elements * sizeof(float) : t->bytes;
    void *copy = memory_try_aligned(bytes);
    if (!copy) return error_set(err, "%s: tensor %s: not enough memory for %zu bytes", t->file, t->stored, bytes);
    if (wide)
        dtype_to_f32(copy, t->data, t->type, t->elements);
    else
        memcpy(copy, t->data, bytes);
    c->copies = memory_grow(c->copies, c->copy_count + 1, sizeof *c->copies);
    c->copies[c->copy_count++] = copy;
    t->data = copy;
    t->bytes = bytes;
    if (wide) t->type = DTYPE_F32;
    return true;
}

static bool part_add(checkpoint *c, checkpoint_part part, const safetensors *st, const safetensors_tensor *stored, const char *name,
                     error *err) {
    bool usable = stored->type == DTYPE_F32 || stored->type == DTYPE_F16 || stored->type == DTYPE_BF16 || stored->type == DTYPE_F64;
    if (!usable)
        return error_set(err, "%s: tensor %s: is stored as %s; weights must be F32, F16 or BF16, so get a full or half precision file",
                         st->path, stored->name, dtype_name(stored->type));
    if (stored->rank > CHECKPOINT_RANK_MAX || stored->elements == 0) {
        char shape[128];
        safetensors_shape_text(shape, sizeof shape, stored->rank, stored->dims);
        return error_set(err, "%s: tensor %s: no weight of this model has the shape %s", st->path, stored->name, shape);
    }
    checkpoint_tensor t = {.stored = stored->name,
                           .file = st->path,
                           .type = stored->type,
                           .rank = stored->rank,
                           .elements = stored->elements,
                           .data = stored->data,
                           .bytes = stored->bytes};
    memcpy(t.dims, stored->dims, sizeof t.dims);
    if (part == CHECKPOINT_VAE && t.rank == 4 && t.dims[2] == 1 && t.dims[3] == 1 && checkpoint_vae_is_attention_matrix(name)) t.rank = 2;
    if (!tensor_settle(c, &t, err)) return false;
    t.name = memory_string(name);
    checkpoint_table *table = &c->parts[part];
    if ((table->count & (table->count - 1)) == 0) /* room doubles at powers of two */
        table->tensors = memory_grow(table->tensors, table->count ? table->count * 2 : 1, sizeof *table->tensors);
    table->tensors[table->count++] = t;
    table->parameters += t.elements;
    table->bytes += t.bytes;
    return true;
}

static bool begins(const char *name, const char *prefix) { return strncmp(name, prefix, strlen(prefix)) == 0; }

static unsigned vae_levels(const safetensors *st, const char *prefix) {
    int levels = 0;
    for (size_t i = 0; i < st->count; i++) {
        if (!begins(st->tensors[i].name, prefix)) continue;
        int level = checkpoint_vae_level(st->tensors[i].name + strlen(prefix));
        if (level >= levels) levels = level + 1;
    }
    return (unsigned)levels;
}

/* Adds the file's tensors that begin with the prefix, translated. Those that no SD 1.x model has are counted and left. */
static bool part_add_file(checkpoint *c, checkpoint_part part, const safetensors *st, const char *prefix, error *err) {
    unsigned levels = part == CHECKPOINT_VAE ? vae_levels(st, prefix) : 0;
    for (size_t i = 0; i < st->count; i++) {
        const safetensors_tensor *t = &st->tensors[i];
        char name[NAME_SIZE];
        if (!begins(t->name, prefix)) continue;
        if (!part_translate(part, t->name + strlen(prefix), levels, name, sizeof name))
            c->parts[part].ignored++;
        else if (!part_add(c, part, st, t, name, err))
            return false;
    }
    return true;
}

/* Opens a file that stays open with the model. */
static const safetensors *file_open(checkpoint *c, const char *path, error *err) {
    safetensors st;
    if (!safetensors_open(&st, path, err)) return NULL;
    c->files = memory_grow(c->files, c->file_count + 1, sizeof *c->files);
    c->files[c->file_count] = st;
    return &c->files[c->file_count++];
}

/* ---- Diffusers folders ---- */

/* How a part's weights may be named, in the order of preference: NAME + ENDING. */
static const char *const WEIGHT_NAMES[] = {"diffusion_pytorch_model", "model"};
static const char *const WEIGHT_ENDINGS[] = {
    ".safetensors", ".safetensors.index.json", ".fp16.safetensors", ".safetensors.index.fp16.json", ".non_ema.safetensors",
};

static char *weights_find(const char *folder) {
    for (size_t e = 0; e < LENGTH(WEIGHT_ENDINGS); e++)
        for (size_t n = 0; n < LENGTH(WEIGHT_NAMES); n++) {
            char *path = memory_format("%s/%s%s", folder, WEIGHT_NAMES[n], WEIGHT_ENDINGS[e]);
            if (file_exists(path)) return path;
            free(path);
        }
    return NULL;
}

static bool weights_missing(const char *folder, error *err) {
    for (size_t n = 0; n < LENGTH(WEIGHT_NAMES) + 1; n++) {
        char *path = memory_format("%s/%s.bin", folder, n < LENGTH(WEIGHT_NAMES) ? WEIGHT_NAMES[n] : "pytorch_model");
        bool pickle = file_exists(path);
        if (pickle) error_set(err, "%s: is a PyTorch pickle; convert it to .safetensors first", path);
        free(path);
        if (pickle) return false;
    }
    return error_set(err, "%s: has no weights (diffusion_pytorch_model.safetensors or model.safetensors)", folder);
}

/* The open file of that path, opened if it is not yet. */
static const safetensors *shard_open(checkpoint *c, const char *folder, const char *name, error *err) {
    char *path = memory_format("%s/%s", folder, name);
    const safetensors *st = NULL;
    for (size_t i = 0; i < c->file_count && !st; i++)
        if (strcmp(c->files[i].path, path) == 0) st = &c->files[i];
    if (!st) st = file_open(c, path, err);
    free(path);
    return st;
}

/* Adds one tensor that an index promises to be in a file beside it. */
static bool shard_add(checkpoint *c, checkpoint_part part, const char *folder, const char *index, const char *tensor, json_t *file,
                      error *err) {
    const char *shard = json_string_value(file);
    if (!shard || !*shard || strchr(shard, '/') || strchr(shard, '\\') || shard[0] == '.')
        return error_set(err, "%s: tensor %.160s: names no file beside the index", index, tensor);
    const safetensors *st = shard_open(c, folder, shard, err);
    if (!st) return false;
    const safetensors_tensor *t = safetensors_find(st, tensor);
    if (!t) return error_set(err, "%s: tensor %.160s: is not in %.160s, where the index says it is", index, tensor, shard);
    char name[NAME_SIZE];
    if (part_translate(part, tensor, 0, name, sizeof name)) return part_add(c, part, st, t, name, err);
    c->parts[part].ignored++;
    return true;
}

static bool part_add_split(checkpoint *c, checkpoint_part part, const char *folder, const char *index, error *err) {
    json_error_t problem;
    json_t *root = json_load_file(index, JSON_REJECT_DUPLICATES, &problem);
    if (!root) return error_set(err, "%s: line %d: %s", index, problem.line, problem.text);
    json_t *map = json_object_get(root, "weight_map");
    bool ok = json_is_object(map) && json_object_size(map) > 0 ? true : error_set(err, "%s: has no weight_map", index);
    const char *tensor;
    json_t *file;
    json_object_foreach(map, tensor, file) {
        if (ok) ok = shard_add(c, part, folder, index, tensor, file, err);
    }
    json_decref(root);
    return ok;
}

/* Adds a part from its folder in a diffusers model. */
static bool part_add_folder(checkpoint *c, checkpoint_part part, const char *folder, error *err) {
    char *path = weights_find(folder);
    if (!path) return weights_missing(folder, err);
    c->parts[part].path = memory_string(folder);
    bool ok;
    if (strstr(path + strlen(folder), ".index.")) {
        ok = part_add_split(c, part, folder, path, err);
    } else {
        const safetensors *st = file_open(c, path, err);
        ok = st && (part != CHECKPOINT_UNET || checkpoint_kind_check_file(st, err)) && part_add_file(c, part, st, "", err);
    }
    if (ok && c->parts[part].count == 0) ok = error_set(err, "%s: has no tensors of a %s in it", path, PARTS[part].name);
    free(path);
    if (ok && part == CHECKPOINT_VAE) ok = checkpoint_config_read_vae(&c->config, folder, err);
    return ok;
}

/* ---- The three sources ---- */

static bool open_single_file(checkpoint *c, bool own_vae, error *err) {
    const safetensors *st = file_open(c, c->path, err);
    if (!st || !checkpoint_kind_check_file(st, err)) return false;
    for (int p = 0; p < CHECKPOINT_PARTS; p++) {
        if (p == CHECKPOINT_VAE && !own_vae) continue;
        if (!part_add_file(c, (checkpoint_part)p, st, PARTS[p].prefix, err)) return false;
        if (c->parts[p].count) c->parts[p].path = memory_string(c->path);
    }
    return true;
}

static bool open_folder(checkpoint *c, bool own_vae, error *err) {
    if (!checkpoint_kind_check_folder(c->path, err)) return false;
    for (int p = 0; p < CHECKPOINT_PARTS; p++) {
        if (p == CHECKPOINT_VAE && !own_vae) continue;
        char *folder = memory_format("%s/%s", c->path, PARTS[p].folder);
        bool ok = !file_is_directory(folder) || part_add_folder(c, (checkpoint_part)p, folder, err);
        free(folder);
        if (!ok) return false;
    }
    return true;
}

/* A VAE's own folder, a whole diffusers model with one in it, or a file with or without the prefix of a full checkpoint. */
static bool open_vae(checkpoint *c, const char *path, error *err) {
    if (file_is_directory(path)) {
        char *inner = memory_format("%s/vae", path);
        bool ok = part_add_folder(c, CHECKPOINT_VAE, file_is_directory(inner) ? inner : path, err);
        free(inner);
        return ok;
    }
    const safetensors *st = file_open(c, path, err);
    if (!st || !checkpoint_kind_check_file(st, err)) return false;
    const char *prefix = "";
    for (size_t i = 0; i < st->count; i++)
        if (begins(st->tensors[i].name, PARTS[CHECKPOINT_VAE].prefix)) prefix = PARTS[CHECKPOINT_VAE].prefix;
    if (!part_add_file(c, CHECKPOINT_VAE, st, prefix, err)) return false;
    if (c->parts[CHECKPOINT_VAE].count == 0) return error_set(err, "%s: has no VAE in it (option --vae)", path);
    c->parts[CHECKPOINT_VAE].path = memory_string(path);
    return true;
}

/* ---- The tables ---- */

static int tensor_order(const void *a, const void *b) {
    return strcmp(((const checkpoint_tensor *)a)->name, ((const checkpoint_tensor *)b)->name);
}

static bool tables_sort(checkpoint *c, error *err) {
    for (int p = 0; p < CHECKPOINT_PARTS; p++) {
        checkpoint_table *table = &c->parts[p];
        if (table->count) qsort(table->tensors, table->count, sizeof *table->tensors, tensor_order);
        for (size_t i = 1; i < table->count; i++) {
            const checkpoint_tensor *t = &table->tensors[i];
            if (strcmp(t[-1].name, t->name) == 0)
                return error_set(err, "%s: tensors %s and %s are the same weight of the %s", t->file, t[-1].stored, t->stored,
                                 PARTS[p].name);
        }
    }
    return true;
}

bool checkpoint_open(checkpoint *c, const char *path, const char *vae, error *err) {
    *c = (checkpoint){.path = memory_string(path), .folder = file_is_directory(path)};
    checkpoint_config_default(&c->config);
    bool ok = c->folder ? open_folder(c, !vae, err) : open_single_file(c, !vae, err);
    ok = ok && (!vae || open_vae(c, vae, err)) && tables_sort(c, err) && checkpoint_kind_check_parts(c, err) &&
         (!c->folder || checkpoint_config_read(&c->config, path, err)) && checkpoint_config_finish(c, err);
    if (!ok) checkpoint_close(c);
    return ok;
}

void checkpoint_close(checkpoint *c) {
    for (int p = 0; p < CHECKPOINT_PARTS; p++) {
        for (size_t i = 0; i < c->parts[p].count; i++) free(c->parts[p].tensors[i].name);
        free(c->parts[p].tensors);
        free(c->parts[p].path);
    }
    for (size_t i = 0; i < c->copy_count; i++) free(c->copies[i]);
    for (size_t i = 0; i < c->file_count; i++) safetensors_close(&c->files[i]);
    free(c->copies);
    free(c->files);
    free(c->config.tokenizer);
    free(c->path);
    *c = (checkpoint){0};
}

const checkpoint_tensor *checkpoint_find(const checkpoint *c, checkpoint_part part, const char *name) {
    const checkpoint_table *table = &c->parts[part];
    checkpoint_tensor key = {0};
    char copy[NAME_SIZE];
    if (table->count == 0 || strlen(name) >= sizeof copy) return NULL;
    strcpy(copy, name);
    key.name = copy;
    return bsearch(&key, table->tensors, table->count, sizeof *table->tensors, tensor_order);
}

const checkpoint_tensor *checkpoint_need(const checkpoint *c, checkpoint_part part, const char *name, error *err) {
    const checkpoint_tensor *t = checkpoint_find(c, part, name);
    if (!t) error_set(err, "%s: the %s has no tensor %s; the file is not complete", c->parts[part].path, PARTS[part].name, name);
    return t;
}

const checkpoint_tensor *checkpoint_need_shape(const checkpoint *c, checkpoint_part part, const char *name, int rank, const int64_t *dims,
                                               error *err) {
    const checkpoint_tensor *t = checkpoint_need(c, part, name, err);
    bool fits = t && t->rank == rank;
    for (int i = 0; fits && i < rank; i++) fits = dims[i] < 0 || dims[i] == t->dims[i];
    if (!t || fits) return fits ? t : NULL;
    char have[128], want[128];
    safetensors_shape_text(have, sizeof have, t->rank, t->dims);
    safetensors_shape_text(want, sizeof want, rank, dims);
    error_set(err, "%s: tensor %s: has the shape %s, needed is %s%s", t->file, t->stored, have, want,
              strchr(want, '-') ? " (-1: any size)" : "");
    return NULL;
}

void checkpoint_forget(const checkpoint *c, const checkpoint_tensor *tensor) {
    const uint8_t *data = tensor->data;
    for (size_t i = 0; i < c->file_count; i++) {
        const file_map *map = &c->files[i].map;
        /* Copies outside the mappings would be lost. */
        if (data >= map->data && data < map->data + map->size) file_map_forget(data, tensor->bytes);
    }
}
