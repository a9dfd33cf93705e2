#include "cli/infotext.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "formats/safetensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct text {
    char *data;
    size_t size;
} text;

static void append(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void append(text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (length < 0) return;
    t->data = memory_grow(t->data, t->size + (size_t)length + 1, 1);
    va_start(args, format);
    vsnprintf(t->data + t->size, (size_t)length + 1, format, args);
    va_end(args);
    t->size += (size_t)length;
}

/* Values with a comma, colon or line end stand in quotes, as a JSON string. */
static void append_value(text *t, const char *key, const char *value) {
    append(t, ", %s: ", key);
    if (!strpbrk(value, ",:\n\"")) {
        append(t, "%s", value);
        return;
    }
    append(t, "\"");
    for (const char *c = value; *c; c++) {
        if (*c == '\n')
            append(t, "\\n");
        else
            append(t, "%s%c", *c == '"' || *c == '\\' ? "\\" : "", *c);
    }
    append(t, "\"");
}

static void append_loras(text *t, const infotext *info) {
    for (int i = 0; i < info->lora_count; i++) {
        const infotext_lora *l = &info->loras[i];
        if (l->in_prompt) continue;
        append(t, "%s<lora:%s:%g", t->size ? " " : "", l->name, (double)l->text_weight);
        if (l->unet_weight != l->text_weight) append(t, ":%g", (double)l->unet_weight);
        if (*l->blocks) append(t, ":lbw=%s", l->blocks);
        append(t, ">");
    }
}

static void append_lora_hashes(text *t, const infotext *info) {
    text hashes = {NULL, 0};
    for (int i = 0; i < info->lora_count; i++)
        if (*info->loras[i].hash) append(&hashes, "%s%s: %s", hashes.size ? ", " : "", info->loras[i].name, info->loras[i].hash);
    if (hashes.data) append(t, ", Lora hashes: \"%s\"", hashes.data);
    free(hashes.data);
}

char *infotext_make(const infotext *info) {
    text t = {NULL, 0};
    const draw_settings *s = info->settings;
    append(&t, "%s", info->prompt);
    append_loras(&t, info);
    if (*info->negative) append(&t, "\nNegative prompt: %s", info->negative);
    append(&t, "\nSteps: %d, Sampler: %s, Schedule type: %s, CFG scale: %g, Seed: %llu, Size: %dx%d", s->steps, s->sampler->label,
           sigma_spacing_label(s->spacing), (double)s->cfg, (unsigned long long)info->seed, s->width, s->height);
    if (*info->model_hash) append_value(&t, "Model hash", info->model_hash);
    append_value(&t, "Model", info->model);
    if (s->clip_skip > 1) append(&t, ", Clip skip: %d", s->clip_skip);
    append(&t, ", RNG: %s", s->source == RANDOM_SOURCE_CPU ? "CPU" : "NV");
    append_lora_hashes(&t, info);
    append(&t, ", Version: vulora %s", VULORA_VERSION);
    return t.data;
}

char *infotext_stem(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    size_t start = length;
    while (start > 0 && path[start - 1] != '/') start--;
    char *stem = memory_format("%.*s", (int)(length - start), path + start), *dot = strrchr(stem, '.');
    if (dot && dot > stem && (!strcmp(dot, ".safetensors") || !strcmp(dot, ".ckpt"))) *dot = 0;
    return stem;
}

void infotext_model_hash(const char *path, char out[11]) {
    const size_t quickly_hashed = (size_t)256 << 20;
    file_map map;
    *out = 0;
    if (!file_map_open(&map, path, NULL)) return;
    if (map.size <= quickly_hashed) {
        sha256 hash;
        char hex[65];
        sha256_init(&hash);
        sha256_update(&hash, map.data, map.size);
        sha256_hex(&hash, hex);
        memcpy(out, hex, 10);
        out[10] = 0;
    }
    file_map_close(&map);
}

void infotext_lora_hash(const char *path, char out[13]) {
    safetensors file;
    char hex[65];
    *out = 0;
    if (file_is_directory(path) || !safetensors_open(&file, path, NULL)) return;
    const char *stated = safetensors_metadata(&file, "sshs_model_hash");
    if (!stated || strlen(stated) < 12) {
        sha256 hash;
        sha256_init(&hash);
        sha256_update(&hash, file.map.data + file.data_start, file.map.size - file.data_start);
        sha256_hex(&hash, hex);
        stated = hex;
    }
    memcpy(out, stated, 12);
    out[12] = 0;
    safetensors_close(&file);
}
