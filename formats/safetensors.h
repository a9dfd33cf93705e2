/* safetensors files: eight bytes of header length, a JSON header, raw tensor data. The reader is strict: a file is either wholly
   understood or refused with its name, the tensor and the reason. The writer lays tensors out as the reference implementation does
   (https://github.com/huggingface/safetensors), so that hashes of the data agree with those of Python programs. */
#ifndef VULORA_FORMATS_SAFETENSORS_H
#define VULORA_FORMATS_SAFETENSORS_H

#include "base/dtype.h"
#include "base/error.h"
#include "base/file.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_RANK_MAX 8

/* One tensor of an open file. `data` points into the mapping and may be less aligned than its type wants (early writers did not pad
   the header): read it through dtype_to_f32 or memcpy. */
typedef struct safetensors_tensor {
    const char *name;
    dtype type;
    int rank; /* 0 for a scalar */
    int64_t dims[SAFETENSORS_RANK_MAX];
    size_t elements;
    const void *data;
    size_t bytes;
} safetensors_tensor;

typedef struct safetensors_pair {
    const char *key, *value;
} safetensors_pair;

struct json_t;

/* An open file. Everything in it lives until safetensors_close. */
typedef struct safetensors {
    char *path;
    file_map map;
    size_t data_start;           /* where the data section begins in the file */
    safetensors_tensor *tensors; /* in the order of their data */
    size_t count;
    safetensors_pair *metadata; /* `__metadata__`, in the file's order */
    size_t metadata_count;
    const safetensors_tensor **by_name;
    struct json_t *header;
} safetensors;

/* Opens and checks a file. On error nothing is left open and *st is empty. */
bool safetensors_open(safetensors *st, const char *path, error *err);
void safetensors_close(safetensors *st);

/* The tensor of that name, or NULL. */
const safetensors_tensor *safetensors_find(const safetensors *st, const char *name);

/* As safetensors_find; a tensor that is not there is an error naming file and tensor. */
const safetensors_tensor *safetensors_need(const safetensors *st, const char *name, error *err);

/* The value of a metadata key, or NULL. */
const char *safetensors_metadata(const safetensors *st, const char *key);

/* The tensor as freshly allocated float32 values, freed by the caller; NULL on error (no memory). */
float *safetensors_read_f32(const safetensors *st, const safetensors_tensor *tensor, error *err);

/* "[320, 4, 3, 3]" */
void safetensors_shape_text(char *out, size_t size, int rank, const int64_t *dims);

/* Index of the first NaN or infinity among the tensor's elements, or `elements` when all are finite (always for integer types). */
size_t safetensors_first_nonfinite(const void *data, dtype type, size_t elements);

/* ---- Writing ---- */

/* Produces a tensor's bytes in the tensor's own dtype when they are needed (it is called once for each hash, check and write). */
typedef bool (*safetensors_fill)(void *context, void *out, size_t bytes, error *err);

typedef struct safetensors_source {
    char *name;
    dtype type;
    int rank;
    int64_t dims[SAFETENSORS_RANK_MAX];
    size_t elements;
    const void *data;      /* bytes in `type` */
    const float *values;   /* or: float32 values, converted to `type` */
    safetensors_fill fill; /* or: a function */
    void *context;
} safetensors_source;

typedef struct safetensors_writer {
    safetensors_source *tensors;
    size_t count;
    struct {
        char *key, *value;
    } * metadata;
    size_t metadata_count;
    bool refuse_nonfinite; /* refuse NaN and infinity in floating-point tensors, before anything is written */
} safetensors_writer;

/* A writer is zero-initialised ({0}) and freed with safetensors_writer_free. */
void safetensors_writer_free(safetensors_writer *writer);

/* Adds a tensor. dims: [rank]. Data is not copied: it must stay until the last write. Refuses an empty or repeated name. */
bool safetensors_writer_add(safetensors_writer *writer, const char *name, dtype type, int rank, const int64_t *dims, const void *data,
                            error *err);

/* The same from float32 values that are stored as `type` (F32, F16 or BF16). */
bool safetensors_writer_add_f32(safetensors_writer *writer, const char *name, dtype type, int rank, const int64_t *dims,
                                const float *values, error *err);

/* The same from a function. */
bool safetensors_writer_add_fill(safetensors_writer *writer, const char *name, dtype type, int rank, const int64_t *dims,
                                 safetensors_fill fill, void *context, error *err);

/* Sets a metadata pair (UTF-8), replacing an earlier value of the key. */
void safetensors_writer_metadata(safetensors_writer *writer, const char *key, const char *value);

/* sd-scripts' two hashes (formats.md 5.3): the file is laid out in memory with only the `ss_*` metadata. model: SHA-256 of the data
   section, 64 hex digits. legacy: the first 8 hex digits of the SHA-256 of bytes [0x100000, 0x110000) of the whole. */
bool safetensors_writer_hashes(const safetensors_writer *writer, char model[65], char legacy[9], error *err);

/* Writes the file under a temporary name and renames it onto `path`; on error what stood there before is untouched. */
bool safetensors_writer_write(const safetensors_writer *writer, const char *path, error *err);

#endif
