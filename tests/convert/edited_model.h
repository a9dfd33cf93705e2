/* Models that differ from another one in a few tensors: what a fine-tuning leaves behind, for tests. */
#ifndef VULORA_TESTS_EDITED_MODEL_H
#define VULORA_TESTS_EDITED_MODEL_H

#include "base/memory.h"
#include "base/random.h"
#include "formats/checkpoint.h"
#include "lora/modules.h"
#include "tests/support/folder.h"
#include "tests/support/tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

static checkpoint base; /* fp32 */
static module_table *table;
static char *folder;

/* A path in the folder, until four calls later. */
static inline const char *in_folder(const char *name) {
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static inline int base_open(void **state) {
    (void)state;
    error err;
    tiny_model_shape shape = {TINY_UNET_CHANNELS, TINY_VAE_CHANNELS, TINY_TEXT_WIDTH, TINY_TEXT_LAYERS, DTYPE_F32, 4};
    folder = folder_make("convert");
    bool ok = tiny_model_write_shape(in_folder("base.safetensors"), 1, shape);
    ok = ok && checkpoint_open(&base, in_folder("base.safetensors"), NULL, &err);
    table = ok ? module_table_create(&base, &err) : NULL;
    return table ? 0 : -1;
}

static inline int base_close(void **state) {
    (void)state;
    module_table_free(table);
    checkpoint_close(&base);
    folder_remove(folder);
    return 0;
}

static inline const module_info *module_at(const char *flat) {
    const module_info *m = module_table_find(table, flat);
    assert_non_null(m);
    return m;
}

/* ---- Edits ---- */

typedef struct edit {
    const checkpoint_tensor *tensor; /* of `base` */
    float *added;                    /* [elements] */
} edit;

static inline float *noise_of(size_t count, uint32_t stream, float size) {
    float *x = memory_new(count, sizeof *x);
    random_normal_fill(11, stream, 0, x, count);
    for (size_t i = 0; i < count; i++) x[i] *= size;
    return x;
}

static inline edit edit_noise(checkpoint_part part, const char *name, uint32_t stream, float size) {
    error err;
    const checkpoint_tensor *t = checkpoint_need(&base, part, name, &err);
    assert_non_null(t);
    return (edit){t, noise_of(t->elements, stream, size)};
}

/* A change of that rank. */
static inline edit edit_low_rank(const char *flat, int64_t rank, uint32_t stream, float size) {
    const module_info *m = module_at(flat);
    int64_t columns = m->in * m->kernel * m->kernel;
    float *up = noise_of((size_t)(m->out * rank), stream, size), *down = noise_of((size_t)(rank * columns), stream + 1, 1);
    edit e = {m->weight, memory_new((size_t)(m->out * columns), sizeof(float))};
    for (int64_t i = 0; i < m->out; i++)
        for (int64_t k = 0; k < rank; k++)
            for (int64_t j = 0; j < columns; j++) e.added[i * columns + j] += up[i * rank + k] * down[k * columns + j];
    free(up);
    free(down);
    return e;
}

static inline void edits_free(edit *edits, size_t count) {
    for (size_t i = 0; i < count; i++) free(edits[i].added);
}

static inline float *edited_values(const checkpoint_tensor *t, const edit *edits, size_t count) {
    float *values = memory_new(t->elements, sizeof *values);
    dtype_to_f32(values, t->data, t->type, t->elements);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; edits[i].tensor == t && k < t->elements; k++) values[k] += edits[i].added[k];
    return values;
}

/* ---- Files ---- */

/* Writes the part's tensors as `type`, under the base file's names or, with `diffusers`, under those. */
static inline void part_write(safetensors_writer *w, checkpoint_part part, bool diffusers, dtype type, const edit *edits, size_t count,
                              float **kept, size_t *kept_count) {
    error err;
    for (size_t i = 0; i < base.parts[part].count; i++) {
        const checkpoint_tensor *t = &base.parts[part].tensors[i];
        float *values = kept[(*kept_count)++] = edited_values(t, edits, count);
        if (!safetensors_writer_add_f32(w, diffusers ? t->name : t->stored, type, t->rank, t->dims, values, &err)) fail_msg("%s", err.text);
    }
}

static inline void finish(safetensors_writer *w, const char *path, float **kept, size_t kept_count) {
    error err;
    if (!safetensors_writer_write(w, path, &err)) fail_msg("%s", err.text);
    safetensors_writer_free(w);
    for (size_t i = 0; i < kept_count; i++) free(kept[i]);
    free(kept);
}

/* The base with those edits in a single file. */
static inline void model_write(const char *path, dtype type, const edit *edits, size_t count) {
    safetensors_writer w = {0};
    size_t kept_count = 0;
    float **kept = memory_new(4096, sizeof *kept);
    safetensors_writer_metadata(&w, "modelspec.title", "a model");
    safetensors_writer_metadata(&w, "sshs_model_hash", "of these tensors");
    for (int p = 0; p < CHECKPOINT_PARTS; p++) part_write(&w, (checkpoint_part)p, false, type, edits, count, kept, &kept_count);
    finish(&w, path, kept, kept_count);
}

/* The same as a diffusers folder. */
static inline void model_write_folder(const char *path, dtype type, const edit *edits, size_t count) {
    static const char *const files[] = {"unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"};
    folder_text(path, "unet/config.json", "{\"attention_head_dim\": 8}");
    folder_text(path, "vae/config.json", "{}");
    folder_text(path, "text_encoder/config.json", "{\"num_attention_heads\": 1}");
    for (int p = 0; p < CHECKPOINT_PARTS; p++) {
        safetensors_writer w = {0};
        size_t kept_count = 0;
        float **kept = memory_new(4096, sizeof *kept);
        char file[600];
        snprintf(file, sizeof file, "%s/%s.safetensors", path, files[p]);
        part_write(&w, (checkpoint_part)p, true, type, edits, count, kept, &kept_count);
        finish(&w, file, kept, kept_count);
    }
}

#endif
