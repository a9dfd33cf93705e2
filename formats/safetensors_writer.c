#include "formats/safetensors.h"

#include "base/memory.h"
#include "base/sha256.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Where a serialised file goes: to disk, or through a hash. */
typedef bool (*sink)(void *context, const void *data, size_t size, error *err);

/* ---- Collecting ---- */

static bool source_add(safetensors_writer *writer, safetensors_source source, const char *name, const int64_t *dims, error *err) {
    if (!*name || strcmp(name, "__metadata__") == 0) return error_set(err, "a tensor cannot be named \"%s\"", name);
    if (source.rank < 0 || source.rank > SAFETENSORS_RANK_MAX)
        return error_set(err, "tensor %s: %d dimensions, at most %d are supported", name, source.rank, SAFETENSORS_RANK_MAX);
    source.elements = 1;
    for (int i = 0; i < source.rank; i++) {
        if (dims[i] < 0 || (dims[i] > 0 && source.elements > (size_t)INT64_MAX / 8 / (size_t)dims[i]))
            return error_set(err, "tensor %s: dimension %d is out of range", name, i);
        source.dims[i] = dims[i];
        source.elements *= (size_t)dims[i];
    }
    for (size_t i = 0; i < writer->count; i++)
        if (strcmp(writer->tensors[i].name, name) == 0) return error_set(err, "tensor %s: is there twice", name);
    source.name = memory_string(name);
    writer->tensors = memory_grow(writer->tensors, writer->count + 1, sizeof *writer->tensors);
    writer->tensors[writer->count++] = source;
    return true;
}

bool safetensors_writer_add(safetensors_writer *writer, const char *name, dtype type, int rank, const int64_t *dims, const void *data,
                            error *err) {
    return source_add(writer, (safetensors_source){.type = type, .rank = rank, .data = data}, name, dims, err);
}

bool safetensors_writer_add_f32(safetensors_writer *writer, const char *name, dtype type, int rank, const int64_t *dims,
                                const float *values, error *err) {
    if (type != DTYPE_F32 && type != DTYPE_F16 && type != DTYPE_BF16)
        return error_set(err, "tensor %s: cannot be written as %s", name, dtype_name(type));
    return source_add(writer, (safetensors_source){.type = type, .rank = rank, .values = values}, name, dims, err);
}

bool safetensors_writer_add_fill(safetensors_writer *writer, const char *name, dtype type, int rank, const int64_t *dims,
                                 safetensors_fill fill, void *context, error *err) {
    return source_add(writer, (safetensors_source){.type = type, .rank = rank, .fill = fill, .context = context}, name, dims, err);
}

void safetensors_writer_metadata(safetensors_writer *writer, const char *key, const char *value) {
    for (size_t i = 0; i < writer->metadata_count; i++) {
        if (strcmp(writer->metadata[i].key, key) != 0) continue;
        char *copy = memory_string(value);
        free(writer->metadata[i].value);
        writer->metadata[i].value = copy;
        return;
    }
    writer->metadata = memory_grow(writer->metadata, writer->metadata_count + 1, sizeof *writer->metadata);
    writer->metadata[writer->metadata_count].key = memory_string(key);
    writer->metadata[writer->metadata_count++].value = memory_string(value);
}

void safetensors_writer_free(safetensors_writer *writer) {
    for (size_t i = 0; i < writer->count; i++) free(writer->tensors[i].name);
    for (size_t i = 0; i < writer->metadata_count; i++) {
        free(writer->metadata[i].key);
        free(writer->metadata[i].value);
    }
    free(writer->tensors);
    free(writer->metadata);
    *writer = (safetensors_writer){0};
}

/* ---- Order ---- */

/* The reference writer sorts by type, wide first, as its type enumeration runs downwards; then by name. */
static const int TYPE_ORDER[DTYPE_COUNT] = {
    [DTYPE_I64] = 0, [DTYPE_F64] = 1,     [DTYPE_F32] = 2,     [DTYPE_I32] = 3, [DTYPE_BF16] = 4, [DTYPE_F16] = 5,
    [DTYPE_I16] = 6, [DTYPE_F8_E4M3] = 7, [DTYPE_F8_E5M2] = 8, [DTYPE_I8] = 9,  [DTYPE_U8] = 10,  [DTYPE_BOOL] = 11,
};

static int source_order(const void *a, const void *b) {
    const safetensors_source *x = *(const safetensors_source *const *)a, *y = *(const safetensors_source *const *)b;
    int order = TYPE_ORDER[x->type] - TYPE_ORDER[y->type];
    return order ? order : strcmp(x->name, y->name);
}

static const safetensors_source **sources_sorted(const safetensors_writer *writer) {
    const safetensors_source **order = memory_new(writer->count + 1, sizeof *order);
    for (size_t i = 0; i < writer->count; i++) order[i] = &writer->tensors[i];
    qsort(order, writer->count, sizeof *order, source_order);
    return order;
}

/* ---- Header ---- */

static bool ss_only(const char *key) { return strncmp(key, "ss_", 3) == 0; }

/* The map of metadata, or NULL with an error. `ss` keeps only sd-scripts' keys. */
static json_t *metadata_json(const safetensors_writer *writer, bool ss, error *err) {
    json_t *map = json_object();
    for (size_t i = 0; i < writer->metadata_count; i++) {
        const char *key = writer->metadata[i].key;
        if (ss && !ss_only(key)) continue;
        if (json_object_set_new(map, key, json_string(writer->metadata[i].value)) != 0) {
            error_set(err, "metadata %s: is not valid UTF-8", key);
            json_decref(map);
            return NULL;
        }
    }
    return map;
}

static json_t *source_json(const safetensors_source *source, size_t begin) {
    json_t *shape = json_array();
    for (int i = 0; i < source->rank; i++) json_array_append_new(shape, json_integer(source->dims[i]));
    size_t end = begin + source->elements * dtype_size(source->type);
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(source->type), "shape", shape, "data_offsets", (json_int_t)begin,
                     (json_int_t)end);
}

/* The header's JSON text, freed by the caller; NULL with an error. It begins `{"` and is padded by the caller. */
static char *header_text(const safetensors_writer *writer, const safetensors_source **order, bool ss, error *err) {
    json_t *metadata = metadata_json(writer, ss, err);
    if (!metadata) return NULL;
    json_t *root = json_object();
    if (ss || json_object_size(metadata) > 0) json_object_set(root, "__metadata__", metadata);
    json_decref(metadata);
    size_t begin = 0;
    char *text = NULL;
    for (size_t i = 0; i < writer->count; i++) {
        if (json_object_set_new(root, order[i]->name, source_json(order[i], begin)) != 0) {
            error_set(err, "tensor %s: its name is not valid UTF-8", order[i]->name);
            goto done;
        }
        begin += order[i]->elements * dtype_size(order[i]->type);
    }
    text = json_dumps(root, JSON_COMPACT);
done:
    json_decref(root);
    return text;
}

/* ---- Data ---- */

static bool source_emit(const safetensors_source *source, sink out, void *context, error *err) {
    size_t width = dtype_size(source->type), bytes = source->elements * width;
    if (bytes == 0) return true;
    if (source->data) return out(context, source->data, bytes, err);
    if (source->fill) {
        void *block = memory_try_aligned(bytes);
        bool ok = block ? source->fill(source->context, block, bytes, err)
                        : error_set(err, "tensor %s: not enough memory for %zu bytes", source->name, bytes);
        ok = ok && out(context, block, bytes, err);
        free(block);
        return ok;
    }
    uint32_t block[2048];
    for (size_t done = 0; done < source->elements;) {
        size_t n = source->elements - done < 2048 ? source->elements - done : 2048;
        dtype_from_f32(block, source->type, source->values + done, n);
        if (!out(context, block, n * width, err)) return false;
        done += n;
    }
    return true;
}

/* The whole file, byte by byte, into the sinks: header (length, JSON, padding), then data. */
static bool serialise(const safetensors_writer *writer, bool ss, sink header, sink data, void *context, error *err) {
    static const char spaces[8] = "        ";
    const safetensors_source **order = sources_sorted(writer);
    char *text = header_text(writer, order, ss, err);
    bool ok = text != NULL;
    if (ok) {
        size_t length = strlen(text), padding = (8 - length % 8) % 8;
        uint8_t prefix[8];
        for (int i = 0; i < 8; i++) prefix[i] = (uint8_t)((uint64_t)(length + padding) >> 8 * i);
        ok = header(context, prefix, 8, err) && header(context, text, length, err) && header(context, spaces, padding, err);
    }
    for (size_t i = 0; ok && i < writer->count; i++) ok = source_emit(order[i], data, context, err);
    free(text);
    free(order);
    return ok;
}

/* ---- Hashes ---- */

enum { LEGACY_BEGIN = 0x100000, LEGACY_END = 0x110000 };

typedef struct hashes {
    sha256 model, legacy;
    size_t position;
} hashes;

static bool hash_header(void *context, const void *data, size_t size, error *err) {
    (void)err;
    hashes *h = context;
    size_t begin = h->position, end = begin + size;
    h->position = end;
    size_t from = begin > LEGACY_BEGIN ? begin : LEGACY_BEGIN, to = end < LEGACY_END ? end : LEGACY_END;
    if (from < to) sha256_update(&h->legacy, (const uint8_t *)data + (from - begin), to - from);
    return true;
}

static bool hash_data(void *context, const void *data, size_t size, error *err) {
    hashes *h = context;
    sha256_update(&h->model, data, size);
    return hash_header(context, data, size, err);
}

bool safetensors_writer_hashes(const safetensors_writer *writer, char model[65], char legacy[9], error *err) {
    hashes h = {0};
    sha256_init(&h.model);
    sha256_init(&h.legacy);
    if (!serialise(writer, true, hash_header, hash_data, &h, err)) return false;
    char hex[65];
    sha256_hex(&h.model, model);
    sha256_hex(&h.legacy, hex);
    memcpy(legacy, hex, 8);
    legacy[8] = 0;
    return true;
}

/* ---- Writing ---- */

typedef struct finite_check {
    dtype type;
    size_t done, bad; /* elements seen; the first that is not finite, or SIZE_MAX */
} finite_check;

static bool check_finite(void *context, const void *data, size_t size, error *err) {
    (void)err;
    finite_check *check = context;
    size_t n = size / dtype_size(check->type), at = safetensors_first_nonfinite(data, check->type, n);
    if (at < n && check->bad == SIZE_MAX) check->bad = check->done + at;
    check->done += n;
    return true;
}

static bool sources_finite(const safetensors_writer *writer, const char *path, error *err) {
    for (size_t i = 0; i < writer->count; i++) {
        const safetensors_source *source = &writer->tensors[i];
        finite_check check = {.type = source->type, .bad = SIZE_MAX};
        if (!source_emit(source, check_finite, &check, err)) return false;
        if (check.bad != SIZE_MAX)
            return error_set(err, "%s: not written: tensor %s has NaN or infinity as %s (element %zu)", path, source->name,
                             dtype_name(source->type), check.bad);
    }
    return true;
}

static bool sink_file(void *context, const void *data, size_t size, error *err) { return file_writer_write(context, data, size, err); }

bool safetensors_writer_write(const safetensors_writer *writer, const char *path, error *err) {
    if (writer->refuse_nonfinite && !sources_finite(writer, path, err)) return false;
    file_writer file;
    if (!file_writer_open(&file, path, err)) return false;
    if (serialise(writer, false, sink_file, sink_file, &file, err)) return file_writer_commit(&file, err);
    file_writer_discard(&file);
    return false;
}
