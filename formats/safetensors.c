#include "formats/safetensors.h"

#include "base/memory.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* The reference implementation's limit. Real headers are below 1 MB. */
#define HEADER_MAX ((uint64_t)100 * 1000 * 1000)

/* ---- Files that are something else ---- */

static const struct {
    const char *bytes;
    size_t size;
    const char *what;
} OTHER_FILES[] = {
    {"PK\x03\x04", 4, "is a PyTorch pickle (.ckpt, .pt, .bin) or a zip archive; convert it to .safetensors first"},
    {"\x80\x02\x8a\x0a", 4, "is an old PyTorch pickle (.ckpt, .pt, .bin); convert it to .safetensors first"},
    {"\x80\x02}", 3, "is a Python pickle; convert it to .safetensors first"},
    {"GGUF", 4, "is a GGUF file (quantized for stable-diffusion.cpp or ComfyUI); get the .safetensors file"},
    {"version https://git-lfs", 23, "is a Git LFS pointer; download the real file"},
    {"<!doctype html", 14, "is a web page, not a model: the download went wrong; download the file again"},
    {"<html", 5, "is a web page, not a model: the download went wrong; download the file again"},
    {"\x89PNG", 4, "is a PNG picture, not a .safetensors file"},
    {"\xff\xd8\xff", 3, "is a JPEG picture, not a .safetensors file"},
    {"RIFF", 4, "is a WebP picture or a sound, not a .safetensors file"},
    {"\x89HDF", 4, "is an HDF5 (Keras) file; get the .safetensors file"},
    {"{", 1, "is a JSON text, not a .safetensors file"},
};

static const char *other_file(const file_map *map) {
    size_t skip = map->size >= 3 && memcmp(map->data, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (skip < map->size && skip < 64 && (map->data[skip] == ' ' || map->data[skip] == '\n' || map->data[skip] == '\r')) skip++;
    for (size_t i = 0; i < sizeof OTHER_FILES / sizeof *OTHER_FILES; i++)
        if (map->size - skip >= OTHER_FILES[i].size &&
            strncasecmp((const char *)map->data + skip, OTHER_FILES[i].bytes, OTHER_FILES[i].size) == 0)
            return OTHER_FILES[i].what;
    return NULL;
}

/* ---- The header ---- */

/* Finds the JSON header; *length is its size. */
static bool header_find(const safetensors *st, size_t *length, error *err) {
    const file_map *map = &st->map;
    if (map->size == 0) return error_set(err, "%s: is empty", st->path);
    uint64_t n = 0;
    if (map->size >= 8)
        for (int i = 7; i >= 0; i--) n = n << 8 | map->data[i];
    bool plausible = map->size > 9 && map->data[8] == '{' && n >= 2 && n <= HEADER_MAX;
    const char *other = plausible ? NULL : other_file(map);
    if (other) return error_set(err, "%s: %s", st->path, other);
    if (map->size < 10) return error_set(err, "%s: is too short for a .safetensors file (%zu bytes)", st->path, map->size);
    if (map->data[8] != '{') return error_set(err, "%s: is not a .safetensors file: there is no JSON header", st->path);
    if (n > HEADER_MAX)
        return error_set(err, "%s: damaged header: it claims %" PRIu64 " bytes, the limit is %" PRIu64, st->path, n, HEADER_MAX);
    if (n > map->size - 8)
        return error_set(err, "%s: is truncated: the header has %" PRIu64 " bytes, the file %zu; download or copy it again", st->path, n,
                         map->size);
    if (n < 2) return error_set(err, "%s: damaged header: it claims %" PRIu64 " bytes", st->path, n);
    *length = (size_t)n;
    return true;
}

static bool header_parse(safetensors *st, size_t length, error *err) {
    json_error_t problem;
    st->header = json_loadb((const char *)st->map.data + 8, length, JSON_REJECT_DUPLICATES, &problem);
    if (!st->header) return error_set(err, "%s: damaged header: %s (byte %d)", st->path, problem.text, problem.position);
    if (!json_is_object(st->header)) return error_set(err, "%s: damaged header: it is not a JSON object", st->path);
    st->data_start = 8 + length;
    return true;
}

static bool metadata_read(safetensors *st, json_t *map, error *err) {
    if (!json_is_object(map)) return error_set(err, "%s: damaged header: __metadata__ is not a map of texts", st->path);
    st->metadata = memory_new(json_object_size(map) + 1, sizeof *st->metadata);
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) {
        if (!json_is_string(value)) return error_set(err, "%s: damaged header: metadata %s is not a text", st->path, key);
        st->metadata[st->metadata_count++] = (safetensors_pair){key, json_string_value(value)};
    }
    return true;
}

/* Reads "shape" into rank, dims and elements. */
static bool shape_read(const safetensors *st, safetensors_tensor *t, json_t *shape, error *err) {
    if (!json_is_array(shape)) return error_set(err, "%s: tensor %.160s: has no shape", st->path, t->name);
    size_t rank = json_array_size(shape);
    if (rank > SAFETENSORS_RANK_MAX)
        return error_set(err, "%s: tensor %.160s: has %zu dimensions, at most %d are supported", st->path, t->name, rank,
                         SAFETENSORS_RANK_MAX);
    t->rank = (int)rank;
    t->elements = 1;
    for (size_t i = 0; i < rank; i++) {
        json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return error_set(err, "%s: tensor %.160s: dimension %zu is not a whole number from 0 up", st->path, t->name, i);
        t->dims[i] = json_integer_value(dim);
        if (t->dims[i] != 0 && t->elements > (size_t)INT64_MAX / (size_t)t->dims[i])
            return error_set(err, "%s: tensor %.160s: its shape overflows", st->path, t->name);
        t->elements *= (size_t)t->dims[i];
    }
    if (t->elements > (size_t)INT64_MAX / dtype_size(t->type))
        return error_set(err, "%s: tensor %.160s: its shape overflows", st->path, t->name);
    t->bytes = t->elements * dtype_size(t->type);
    return true;
}

/* Reads one header entry. The begin offset is kept in *begin until all tensors are known to lie in the file. */
static bool tensor_read(const safetensors *st, safetensors_tensor *t, size_t *begin, json_t *entry, error *err) {
    if (!json_is_object(entry)) return error_set(err, "%s: tensor %.160s: its header entry is not an object", st->path, t->name);
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    if (!type) return error_set(err, "%s: tensor %.160s: has no dtype", st->path, t->name);
    t->type = dtype_from_name(type);
    if (t->type == DTYPE_COUNT) return error_set(err, "%s: tensor %.160s: the dtype %.40s is not supported", st->path, t->name, type);
    if (!shape_read(st, t, json_object_get(entry, "shape"), err)) return false;
    json_t *offsets = json_object_get(entry, "data_offsets");
    json_t *first = json_array_get(offsets, 0), *second = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(second))
        return error_set(err, "%s: tensor %.160s: data_offsets are not two whole numbers", st->path, t->name);
    json_int_t from = json_integer_value(first), to = json_integer_value(second);
    if (from < 0 || to < from)
        return error_set(err, "%s: tensor %.160s: data_offsets [%" PRId64 ", %" PRId64 "] are out of order", st->path, t->name,
                         (int64_t)from, (int64_t)to);
    if ((uint64_t)(to - from) != t->bytes) {
        char shape[128];
        safetensors_shape_text(shape, sizeof shape, t->rank, t->dims);
        return error_set(err, "%s: tensor %.160s: %s %s needs %zu bytes, data_offsets give it %" PRId64, st->path, t->name, type, shape,
                         t->bytes, (int64_t)(to - from));
    }
    *begin = (size_t)from;
    return true;
}

/* ---- The table of tensors ---- */

typedef struct placed {
    safetensors_tensor tensor;
    size_t begin;
} placed;

static int placed_order(const void *a, const void *b) {
    const placed *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->tensor.bytes != y->tensor.bytes) return x->tensor.bytes < y->tensor.bytes ? -1 : 1;
    return strcmp(x->tensor.name, y->tensor.name);
}

/* Tensors must cover the data section without gap or overlap (list: sorted by place). */
static bool places_check(const safetensors *st, const placed *list, size_t count, error *err) {
    size_t have = st->map.size - st->data_start, end = 0;
    for (size_t i = 0; i < count; i++)
        if (list[i].begin + list[i].tensor.bytes > end) end = list[i].begin + list[i].tensor.bytes;
    if (end > have)
        return error_set(err, "%s: is truncated: the header promises %zu bytes, the file has %zu; download or copy it again", st->path,
                         st->data_start + end, st->map.size);
    size_t next = 0;
    for (size_t i = 0; i < count; i++) {
        const char *name = list[i].tensor.name;
        if (list[i].begin < next)
            return error_set(err, "%s: tensors %.160s and %.160s overlap; the file is damaged", st->path, list[i - 1].tensor.name, name);
        if (list[i].begin > next)
            return error_set(err, "%s: %zu bytes before tensor %.160s belong to no tensor; the file is damaged", st->path,
                             list[i].begin - next, name);
        next += list[i].tensor.bytes;
    }
    if (next < have) return error_set(err, "%s: %zu bytes at the end belong to no tensor; the file is damaged", st->path, have - next);
    return true;
}

static int name_order(const void *a, const void *b) {
    const safetensors_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static void tensors_keep(safetensors *st, const placed *list, size_t count) {
    st->tensors = memory_new(count + 1, sizeof *st->tensors);
    st->by_name = memory_new(count + 1, sizeof *st->by_name);
    st->count = count;
    for (size_t i = 0; i < count; i++) {
        st->tensors[i] = list[i].tensor;
        st->tensors[i].data = st->map.data + st->data_start + list[i].begin;
        st->by_name[i] = &st->tensors[i];
    }
    qsort(st->by_name, count, sizeof *st->by_name, name_order);
}

static bool tensors_read(safetensors *st, error *err) {
    placed *list = memory_new(json_object_size(st->header) + 1, sizeof *list);
    size_t count = 0;
    bool ok = true;
    const char *name;
    json_t *entry;
    json_object_foreach(st->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            ok = metadata_read(st, entry, err);
        } else {
            placed *p = &list[count++];
            p->tensor.name = name;
            ok = tensor_read(st, &p->tensor, &p->begin, entry, err);
        }
        if (!ok) break;
    }
    if (ok) qsort(list, count, sizeof *list, placed_order);
    ok = ok && places_check(st, list, count, err);
    if (ok) tensors_keep(st, list, count);
    free(list);
    return ok;
}

bool safetensors_open(safetensors *st, const char *path, error *err) {
    *st = (safetensors){0};
    if (!file_map_open(&st->map, path, err)) return false;
    st->path = memory_string(path);
    size_t length = 0;
    if (header_find(st, &length, err) && header_parse(st, length, err) && tensors_read(st, err)) return true;
    safetensors_close(st);
    return false;
}

void safetensors_close(safetensors *st) {
    json_decref(st->header);
    file_map_close(&st->map);
    free(st->by_name);
    free(st->tensors);
    free(st->metadata);
    free(st->path);
    *st = (safetensors){0};
}

/* ---- Asking ---- */

const safetensors_tensor *safetensors_find(const safetensors *st, const char *name) {
    if (st->count == 0) return NULL;
    const safetensors_tensor key = {.name = name}, *pointer = &key;
    const safetensors_tensor *const *found = bsearch(&pointer, st->by_name, st->count, sizeof *st->by_name, name_order);
    return found ? *found : NULL;
}

const safetensors_tensor *safetensors_need(const safetensors *st, const char *name, error *err) {
    const safetensors_tensor *t = safetensors_find(st, name);
    if (!t) error_set(err, "%s: has no tensor %s", st->path, name);
    return t;
}

const char *safetensors_metadata(const safetensors *st, const char *key) {
    for (size_t i = 0; i < st->metadata_count; i++)
        if (strcmp(st->metadata[i].key, key) == 0) return st->metadata[i].value;
    return NULL;
}

float *safetensors_read_f32(const safetensors *st, const safetensors_tensor *tensor, error *err) {
    float *out = tensor->elements < SIZE_MAX / 8 ? memory_try_aligned((tensor->elements + 1) * sizeof *out) : NULL;
    if (out)
        dtype_to_f32(out, tensor->data, tensor->type, tensor->elements);
    else
        error_set(err, "%s: tensor %.160s: not enough memory for %zu values", st->path, tensor->name, tensor->elements);
    return out;
}

void safetensors_shape_text(char *out, size_t size, int rank, const int64_t *dims) {
    size_t used = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < rank && used < size; i++) used += (size_t)snprintf(out + used, size - used, i ? ", %" PRId64 : "%" PRId64, dims[i]);
    if (used < size) snprintf(out + used, size - used, "]");
}

size_t safetensors_first_nonfinite(const void *data, dtype type, size_t elements) {
    bool floating =
        type == DTYPE_F64 || type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16 || type == DTYPE_F8_E4M3 || type == DTYPE_F8_E5M2;
    if (!floating) return elements;
    float block[512];
    for (size_t done = 0; done < elements;) {
        size_t n = elements - done < 512 ? elements - done : 512;
        dtype_to_f32(block, (const char *)data + done * dtype_size(type), type, n);
        for (size_t i = 0; i < n; i++)
            if (!(block[i] - block[i] == 0)) return done + i;
        done += n;
    }
    return elements;
}
