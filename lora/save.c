#include "lora/save.h"

#include "base/memory.h"
#include "lora/dora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Metadata ---- */

/* The shortest digits that give the number back; Python writes 1e16 and up, and below 1e-4, with an exponent. */
void metadata_number(double value, char out[32]) {
    char digits[32];
    int precision = 1;
    do snprintf(digits, sizeof digits, "%.*e", precision - 1, value);
    while (strtod(digits, NULL) != value && precision++ < 17);
    int exponent = atoi(strchr(digits, 'e') ? strchr(digits, 'e') + 1 : "0");
    if (!isfinite(value)) {
        snprintf(out, 32, "%s", isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
    } else if (exponent < -4 || exponent >= 16) {
        snprintf(out, 32, "%.*s%s%02d", (int)strcspn(digits, "e"), digits, exponent < 0 ? "e-" : "e+", abs(exponent));
    } else {
        int decimals = precision - 1 - exponent;
        snprintf(out, 32, "%.*f", decimals > 0 ? decimals : 1, value);
    }
}

/* Rank and alpha of the linear modules and 1x1 convolutions, or of the larger convolutions; rank 0: there are none, -1: they differ. */
typedef struct dimension {
    int64_t rank;
    double alpha;
} dimension;

static dimension adapter_dimension(const adapter *a, bool large_kernel) {
    dimension d = {0};
    for (int i = 0; i < a->module_count; i++) {
        const adapter_module *m = &a->modules[i];
        if ((m->info->kernel > 1) != large_kernel) continue;
        if (d.rank == 0)
            d = (dimension){m->rank, m->alpha};
        else if (d.rank != m->rank || d.alpha != m->alpha)
            d.rank = -1;
    }
    return d;
}

static void dimension_text(dimension d, char rank[32], char alpha[32]) {
    snprintf(rank, 32, "Dynamic");
    snprintf(alpha, 32, "Dynamic"); /* what sd-scripts' resize tool writes for mixed ranks */
    if (d.rank < 0) return;
    snprintf(rank, 32, "%lld", (long long)d.rank);
    metadata_number(d.alpha, alpha);
}

/* text + end; frees text. */
static char *append_text(char *text, const char *end) {
    char *longer = memory_format("%s%s", text, end);
    free(text);
    return longer;
}

static char *append_argument(char *text, const char *key, const char *value) {
    char *argument = memory_format("%s\"%s\": \"%s\"", text[1] ? ", " : "", key, value);
    text = append_text(text, argument);
    free(argument);
    return text;
}

static void add_metadata(safetensors_writer *writer, const adapter *a, const adapter_save_options *o) {
    for (size_t i = 0; i < o->metadata_count; i++) safetensors_writer_metadata(writer, o->metadata[i].key, o->metadata[i].value);
    dimension linear = adapter_dimension(a, false), conv = adapter_dimension(a, true);
    char rank[32], alpha[32];
    dimension_text(linear.rank ? linear : conv, rank, alpha);
    const char *module = a->trainee ? a->trainee->module : "networks.lora", *algorithm = a->trainee ? a->trainee->algorithm : NULL;
    safetensors_writer_metadata(writer, "ss_network_module", module);
    safetensors_writer_metadata(writer, "ss_network_dim", rank);
    safetensors_writer_metadata(writer, "ss_network_alpha", alpha);
    if (conv.rank == 0 && !algorithm) return;
    char *args = memory_string("{");
    if (algorithm) args = append_argument(args, "algo", algorithm);
    if (conv.rank) {
        dimension_text(conv, rank, alpha);
        args = append_argument(append_argument(args, "conv_dim", rank), "conv_alpha", alpha);
    }
    args = append_text(args, "}");
    safetensors_writer_metadata(writer, "ss_network_args", args);
    free(args);
}

/* ---- Tensors ---- */

/* Host copies that live until the file is written. */
typedef struct copies {
    float **blocks;
    size_t count;
} copies;

static float *copies_add(copies *c, size_t elements) {
    c->blocks = memory_grow(c->blocks, c->count + 1, sizeof *c->blocks);
    float *block = memory_try_aligned(elements * sizeof *block);
    if (block) c->blocks[c->count++] = block;
    return block;
}

static void copies_free(copies *c) {
    for (size_t i = 0; i < c->count; i++) free(c->blocks[i]);
    free(c->blocks);
}

/* sd-scripts and diffusers want the factors of a convolution's LoRA with four dimensions, a linear layer's with two. The other kinds'
   tensors are as LyCORIS shapes them, which webui multiplies as they are. */
static int file_shape(const adapter_module *m, const adapter_tensor *t, int64_t dims[4]) {
    memcpy(dims, t->dims, sizeof t->dims);
    if (m->kind != &adapter_kind_lora || t->layout == ADAPTER_VECTOR) return t->rank;
    if (t->rank == 2 && m->info->convolution) dims[2] = dims[3] = 1;
    bool matrix = t->rank == 2 || (t->rank == 4 && t->dims[2] == 1 && t->dims[3] == 1);
    return matrix ? (m->info->convolution ? 4 : 2) : t->rank;
}

static bool add_tensor(safetensors_writer *writer, copies *c, const adapter *a, const adapter_module *m, int index, dtype type,
                       error *err) {
    const adapter_tensor *t = &m->tensors[index];
    size_t n = (size_t)adapter_tensor_elements(t);
    float *file = copies_add(c, n), *engine = memory_try_aligned(n * sizeof *engine);
    bool ok = file && engine;
    if (!ok) error_set(err, "tensor %s: not enough memory to save it", t->name);
    if (ok) ok = tensor_read(a->device, t->value, engine, err);
    if (ok) {
        int64_t dims[4];
        int rank = file_shape(m, t, dims);
        adapter_tensor_to_file(t, engine, file);
        char *name = memory_format("%s.%s", m->info->flat, index == ADAPTER_MAGNITUDE ? "dora_scale" : m->kind->parts[index]);
        ok = safetensors_writer_add_f32(writer, name, type, rank, dims, file, err);
        free(name);
    }
    free(engine);
    return ok;
}

static bool add_module(safetensors_writer *writer, copies *c, const adapter *a, const adapter_module *m, dtype type, error *err) {
    for (int j = 0; j < ADAPTER_MODULE_TENSORS; j++)
        if (m->tensors[j].value && !add_tensor(writer, c, a, m, j, type, err)) return false;
    if (!m->kind->scalar) return true;
    float *alpha = copies_add(c, 1);
    if (!alpha) return error_set(err, "module %s: not enough memory to save it", m->info->flat);
    *alpha = (float)m->alpha;
    char *name = memory_format("%s.%s", m->info->flat, m->kind->scalar);
    bool ok = safetensors_writer_add_f32(writer, name, type, 0, NULL, alpha, err);
    free(name);
    return ok;
}

bool adapter_save(const adapter *a, const char *path, const adapter_save_options *o, error *err) {
    safetensors_writer writer = {.refuse_nonfinite = true};
    copies c = {0};
    bool ok = true;
    for (int i = 0; ok && i < a->module_count; i++) ok = add_module(&writer, &c, a, &a->modules[i], o->type, err);
    if (!ok) error_prefix(err, "%s", path);
    add_metadata(&writer, a, o);
    char model[65], legacy[9];
    ok = ok && safetensors_writer_hashes(&writer, model, legacy, err);
    if (ok) {
        safetensors_writer_metadata(&writer, "sshs_model_hash", model);
        safetensors_writer_metadata(&writer, "sshs_legacy_hash", legacy);
        ok = safetensors_writer_write(&writer, path, err);
    }
    safetensors_writer_free(&writer);
    copies_free(&c);
    return ok;
}
