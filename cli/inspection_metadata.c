/* What an adapter file says about itself, and whether it is true (formats.md 4 and 5). */
#include "base/memory.h"
#include "base/sha256.h"
#include "cli/inspection.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- hashes ---- */

static void hash_part(const void *data, size_t size, char hex[65]) {
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, data, size);
    sha256_hex(&hash, hex);
}

/* As sd-scripts: the tensors laid out anew with only its own metadata. */
static bool compute_hashes(const safetensors *st, char model[65], char legacy[9]) {
    safetensors_writer writer = {0};
    error ignored;
    bool ok = true;
    for (size_t t = 0; ok && t < st->count; t++) {
        const safetensors_tensor *part = &st->tensors[t];
        ok = safetensors_writer_add(&writer, part->name, part->type, part->rank, part->dims, part->data, &ignored);
    }
    for (size_t k = 0; k < st->metadata_count; k++)
        if (strncmp(st->metadata[k].key, "sshs_", 5)) safetensors_writer_metadata(&writer, st->metadata[k].key, st->metadata[k].value);
    ok = ok && safetensors_writer_hashes(&writer, model, legacy, &ignored);
    safetensors_writer_free(&writer);
    return ok;
}

static int by_tensor_name(const void *a, const void *b) {
    return strcmp((*(const safetensors_tensor *const *)a)->name, (*(const safetensors_tensor *const *)b)->name);
}

/* LyCORIS hashes the tensors in the order of its own network, which a file does not keep: only a file that has them in that order, or by
   name, shows that the hash is true. */
static bool lycoris_hash_fits(const safetensors *st, const char *stated) {
    const safetensors_tensor **order = memory_new(st->count + 1, sizeof *order);
    bool fits = false;
    for (size_t t = 0; t < st->count; t++) order[t] = &st->tensors[t];
    for (int pass = 0; pass < 2 && !fits; pass++) {
        sha256 hash;
        char hex[65];
        if (pass) qsort(order, st->count, sizeof *order, by_tensor_name);
        sha256_init(&hash);
        for (size_t t = 0; t < st->count; t++) sha256_update(&hash, order[t]->data, order[t]->bytes);
        sha256_hex(&hash, hex);
        fits = !strcmp(hex, stated + 2);
    }
    free(order);
    return fits;
}

void inspection_check_hashes(inspection *i) {
    const safetensors *st = &i->file.sources[0];
    char legacy[9] = "";
    hash_part(st->map.data, st->map.size, i->file_hash);
    hash_part(st->map.data + st->data_start, st->map.size - st->data_start, i->data_hash);
    i->model_hash.stated = safetensors_metadata(st, "sshs_model_hash");
    i->legacy_hash.stated = safetensors_metadata(st, "sshs_legacy_hash");
    if (!compute_hashes(st, i->model_hash.computed, legacy)) return;
    snprintf(i->legacy_hash.computed, sizeof i->legacy_hash.computed, "%s", legacy);
    const char *model = i->model_hash.stated;
    if (model && !strncmp(model, "0x", 2))
        i->model_hash.verdict = lycoris_hash_fits(st, model) ? HASH_TRUE : HASH_UNKNOWN;
    else if (model)
        i->model_hash.verdict = strcmp(model, i->model_hash.computed) && strcmp(model, i->data_hash) ? HASH_FALSE : HASH_TRUE;
    if (i->legacy_hash.stated) i->legacy_hash.verdict = strcmp(i->legacy_hash.stated, legacy) ? HASH_FALSE : HASH_TRUE;
    if (i->model_hash.verdict == HASH_FALSE)
        inspection_problem(i, "metadata sshs_model_hash does not belong to these tensors: they were changed after it was written, and "
                              "webui will take this file for another");
    else if (i->legacy_hash.verdict == HASH_FALSE)
        inspection_problem(i, "metadata sshs_legacy_hash is not this file's: its tensors or its ss_ metadata were changed after it was "
                              "written");
}

/* ---- what webui's pages read ---- */

/* A value as webui has it: text that begins with { is JSON, anything else stays text. NULL: the key is not there. */
static json_t *webui_value(const safetensors *st, const char *key) {
    const char *text = safetensors_metadata(st, key);
    if (!text) return NULL;
    json_t *value = *text == '{' ? json_loads(text, 0, NULL) : NULL;
    return value ? value : json_string(text);
}

static bool is_count(const json_t *value) { return json_is_number(value) || json_is_boolean(value); }

/* { folder: { tag: count } } */
static bool tag_frequency_fits(const json_t *value) {
    const char *folder, *tag;
    json_t *tags, *count;
    json_object_foreach((json_t *)(uintptr_t)value, folder, tags) {
        if (!json_is_object(tags)) return false;
        json_object_foreach(tags, tag, count) if (!is_count(count)) return false;
    }
    return true;
}

/* { "buckets": { number: { "resolution": [w, h], "count": n } } } */
static bool bucket_info_fits(const json_t *value) {
    json_t *buckets = json_object_get(value, "buckets"), *bucket;
    const char *key;
    if (!buckets) return true;
    if (!json_is_object(buckets)) return false;
    json_object_foreach(buckets, key, bucket) {
        if (!is_count(json_object_get(bucket, "count")) || json_array_size(json_object_get(bucket, "resolution")) < 2) return false;
    }
    return true;
}

/* { folder: { "img_count": n } } */
static bool dataset_dirs_fit(const json_t *value) {
    const char *folder;
    json_t *entry;
    json_object_foreach((json_t *)(uintptr_t)value, folder, entry) {
        if (!json_is_object(entry)) return false;
        json_t *count = json_object_get(entry, "img_count");
        if (count && !is_count(count)) return false;
    }
    return true;
}

static void check_webui_values(inspection *i, const safetensors *st) {
    static const struct {
        const char *key;
        bool (*fits)(const json_t *value);
    } objects[] = {{"ss_tag_frequency", tag_frequency_fits}, {"ss_bucket_info", bucket_info_fits}, {"ss_dataset_dirs", dataset_dirs_fit}};
    static const char *const texts[] = {"ss_output_name", "ss_sd_model_name", "ss_clip_skip", "ss_network_module"};
    for (size_t k = 0; k < sizeof objects / sizeof *objects; k++) {
        json_t *value = webui_value(st, objects[k].key);
        bool none = value && json_is_string(value) && k == 1 && !strcmp(json_string_value(value), "null"); /* sd-scripts without buckets */
        if (value && !none && !json_is_object(value))
            inspection_problem(i, "metadata %s is not a JSON object: webui's metadata editor fails on it", objects[k].key);
        else if (value && !none && !objects[k].fits(value))
            inspection_problem(i, "metadata %s is not built as sd-scripts builds it: webui's metadata editor fails on it", objects[k].key);
        json_decref(value);
    }
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        json_t *value = webui_value(st, texts[k]);
        if (value && !json_is_string(value))
            inspection_problem(i, "metadata %s is a JSON object, not text: webui's metadata editor fails on it", texts[k]);
        json_decref(value);
    }
    const char *started = safetensors_metadata(st, "ss_training_started_at");
    char *end = NULL;
    if (started && *started && ((void)strtod(started, &end), end == started || *end))
        inspection_problem(i, "metadata ss_training_started_at is not a number: webui's metadata editor fails on it");
}

void inspection_check_metadata(inspection *i) {
    const safetensors *st = &i->file.sources[0];
    if (st->map.size > 10 && memcmp(st->map.data + 8, "{\"", 2))
        inspection_problem(i, "the header does not begin with {\": webui cannot read its metadata");
    if (!st->metadata_count) inspection_note(i, "no metadata: webui shows its base version as Unknown");
    check_webui_values(i, st);
    const char *architecture = safetensors_metadata(st, "modelspec.architecture");
    if (architecture && strncmp(architecture, "stable-diffusion-v1", 19))
        inspection_problem(i, "metadata modelspec.architecture says %.100s", architecture);
}

/* ---- words ---- */

typedef struct tag_count {
    const char *tag;
    json_int_t count;
} tag_count;

static int by_count(const void *a, const void *b) {
    const tag_count *x = a, *y = b;
    return x->count != y->count ? (x->count < y->count) - (x->count > y->count) : strcmp(x->tag, y->tag);
}

static void count_up(json_t *sums, const char *key, json_int_t by) {
    json_object_set_new(sums, key, json_integer(json_integer_value(json_object_get(sums, key)) + by));
}

/* Long tags on average are sentences; like webui, their words of three letters and more are counted then. */
static json_t *words_of(json_t *tags) {
    json_t *words = json_object(), *count;
    const char *tag;
    size_t letters = 0;
    json_object_foreach(tags, tag, count) {
        letters += strlen(tag);
        char *copy = memory_string(tag), *rest = NULL;
        for (char *word = strtok_r(copy, " .;:!?\"()", &rest); word; word = strtok_r(NULL, " .;:!?\"()", &rest))
            if (strlen(word) >= 3) count_up(words, word, json_integer_value(count));
        free(copy);
    }
    bool sentences = letters >= 16 * json_object_size(tags);
    json_decref(sentences ? tags : words);
    return sentences ? words : tags;
}

/* Of all folders together; freed by the caller. */
static json_t *sum_tags(const safetensors *st) {
    json_t *folders = webui_value(st, "ss_tag_frequency"), *sums = json_object(), *tags, *count;
    const char *folder, *tag;
    json_object_foreach(folders, folder, tags) json_object_foreach(tags, tag, count) count_up(sums, tag, json_integer_value(count));
    json_decref(folders);
    return sums;
}

void inspection_tags(const safetensors *st, char *out, size_t size) {
    enum { SHOWN = 10 };
    json_t *sums = words_of(sum_tags(st)), *count;
    const char *tag;
    size_t n = json_object_size(sums), used = 0, at = 0;
    tag_count *order = memory_new(n + 1, sizeof *order);
    out[0] = 0;
    json_object_foreach(sums, tag, count) order[at++] = (tag_count){tag, json_integer_value(count)};
    if (n) qsort(order, n, sizeof *order, by_count);
    for (size_t k = 0; k < n && k < SHOWN && used < size; k++)
        used += (size_t)snprintf(out + used, size - used, "%s%.60s (%lld)", k ? ", " : "", order[k].tag, (long long)order[k].count);
    if (n > SHOWN && used < size) snprintf(out + used, size - used, " and %zu more", n - SHOWN);
    free(order);
    json_decref(sums);
}

/* ---- the base model ---- */

static const char *stated(const safetensors *st, const char *key) {
    const char *value = safetensors_metadata(st, key);
    return value && *value && strcmp(value, "None") ? value : NULL;
}

void inspection_base(const inspection *i, char *out, size_t size) {
    const safetensors *st = &i->file.sources[0];
    const char *version = stated(st, "ss_base_model_version"), *name = stated(st, "ss_sd_model_name");
    const char *hash = stated(st, "ss_sd_model_hash"), *architecture = stated(st, "modelspec.architecture");
    const char *peft = NULL;
    for (int p = 0; p < CHECKPOINT_PARTS && !peft; p++)
        peft = json_string_value(json_object_get(i->file.config[p], "base_model_name_or_path"));
    int used = snprintf(out, size, "Stable Diffusion 1.x (%s)", version ? version : architecture ? architecture : "by its modules' names");
    if (!name && peft && *peft) name = peft;
    if (name && used > 0 && (size_t)used < size)
        snprintf(out + used, size - (size_t)used, ", trained on %.200s%s%.16s%s", name, hash ? " [" : "", hash ? hash : "",
                 hash ? "]" : "");
}
