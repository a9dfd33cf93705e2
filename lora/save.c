#include "lora/save.h"

#include "base/memory.h"
#include "lora/dora.h"
#include "lora/start.h"

#include <jansson.h>
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

/* Rank and alpha of the linear modules and 1x1 convolutions, or of the larger convolutions; rank 0: there are none that have one, -1: they
   differ. */
typedef struct dimension {
    int64_t rank;
    double alpha;
} dimension;

static dimension adapter_dimension(const adapter *a, bool large_kernel) {
    dimension d = {0};
    for (int i = 0; i < a->module_count; i++) {
        const adapter_module *m = &a->modules[i];
        if ((m->info->kernel > 1) != large_kernel || m->rank == 0) continue;
        double alpha = m->asked_alpha > 0 ? m->asked_alpha : m->alpha;
        int64_t times = m->start[0] ? 2 : 1, rank = times * m->rank;
        alpha *= (double)times;
        if (d.rank == 0)
            d = (dimension){rank, alpha};
        else if (d.rank != rank || d.alpha != alpha)
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
    json_t *string = json_string(value);
    char *quoted = json_dumps(string, JSON_ENCODE_ANY);
    char *argument = memory_format("%s\"%s\": %s", text[1] ? ", " : "", key, quoted ? quoted : "\"\"");
    text = append_text(text, argument);
    json_decref(string);
    free(quoted);
    free(argument);
    return text;
}

/* As a user writes it: 4, 0.1. */
static char *append_number(char *text, const char *key, double value) {
    char number[32];
    snprintf(number, sizeof number, "%.9g", value);
    return append_argument(text, key, number);
}

static bool has_norms(const adapter *a) {
    for (int i = 0; i < a->module_count; i++)
        if (a->modules[i].kind->apply_norm) return true;
    return false;
}

static void add_metadata(safetensors_writer *writer, const adapter *a, const adapter_save_options *o) {
    for (size_t i = 0; i < o->metadata_count; i++) safetensors_writer_metadata(writer, o->metadata[i].key, o->metadata[i].value);
    dimension linear = adapter_dimension(a, false), conv = adapter_dimension(a, true);
    char rank[32], alpha[32];
    dimension_text(linear.rank ? linear : conv, rank, alpha);
    const char *module = a->trainee ? a->trainee->module : "networks.lora", *algorithm = a->trainee ? a->trainee->algorithm : NULL;
    bool norms = has_norms(a);
    if (norms || o->lycoris) { /* only LyCORIS trains norms: beside any algorithm, or alone */
        if (a->trainee && !a->trainee->kind->apply_norm && !algorithm) algorithm = a->trainee->name;
        module = "lycoris.kohya";
    }
    safetensors_writer_metadata(writer, "ss_network_module", module);
    safetensors_writer_metadata(writer, "ss_network_dim", rank);
    safetensors_writer_metadata(writer, "ss_network_alpha", alpha);
    const adapter_stepwise *w = &a->stepwise;
    char *args = memory_string("{");
    if (algorithm) args = append_argument(args, "algo", algorithm);
    if (norms) args = append_argument(args, "train_norm", "True");
    if (conv.rank) {
        dimension_text(conv, rank, alpha);
        args = append_argument(append_argument(args, "conv_dim", rank), "conv_alpha", alpha);
    }
    if (w->block_size) args = append_number(args, "unit", w->block_size); /* sd-scripts' name */
    if (w->rank_dropout > 0) args = append_number(args, "rank_dropout", w->rank_dropout);
    if (w->module_dropout > 0) args = append_number(args, "module_dropout", w->module_dropout);
    for (size_t i = 0; i < o->argument_count; i++) args = append_argument(args, o->arguments[i].key, o->arguments[i].value);
    args = append_text(args, "}");
    if (strcmp(args, "{}") != 0) safetensors_writer_metadata(writer, "ss_network_args", args);
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

static const char *part_name(const adapter_module *m, int index) {
    return index == ADAPTER_MAGNITUDE ? "dora_scale" : index == ADAPTER_RESIDUAL ? "bias" : m->kind->parts[index];
}

/* scalar: what the tensors are multiplied with that a trained scalar multiplies. */
static bool add_tensor(safetensors_writer *writer, copies *c, const adapter *a, const adapter_module *m, int index, float scalar,
                       dtype type, error *err) {
    const adapter_tensor *t = &m->tensors[index];
    size_t n = (size_t)adapter_tensor_elements(t);
    bool doubled = index < 2 && m->start[index];
    float *file = copies_add(c, doubled ? 2 * n : n), *engine = memory_try_aligned(n * sizeof *engine);
    bool ok = file && engine;
    if (!ok) error_set(err, "tensor %s: not enough memory to save it", t->name);
    if (ok) ok = tensor_read(a->device, t->value, engine, err);
    if (ok) {
        int64_t dims[4];
        int rank = file_shape(m, t, dims);
        adapter_tensor_to_file(t, engine, file);
        for (size_t i = 0; m->kind->scaled & 1u << index && i < n; i++) file[i] *= scalar;
        if (doubled) ok = adapter_start_append(a, m, index, file, dims, err);
        char *name = memory_format("%s.%s", m->info->flat, part_name(m, index));
        ok = ok && safetensors_writer_add_f32(writer, name, type, rank, dims, file, err);
        free(name);
    }
    free(engine);
    return ok;
}

static bool add_module(safetensors_writer *writer, copies *c, const adapter *a, const adapter_module *m, dtype type, error *err) {
    float scalar = 1;
    if (m->kind->foreign) return error_set(err, "module %s: a %s cannot be saved", m->info->flat, m->kind->title);
    if (m->tensors[ADAPTER_SCALAR].value && !tensor_read(a->device, m->tensors[ADAPTER_SCALAR].value, &scalar, err)) return false;
    for (int j = 0; j < ADAPTER_MODULE_TENSORS; j++)
        if (m->tensors[j].value && j != ADAPTER_SCALAR && !add_tensor(writer, c, a, m, j, scalar, type, err)) return false;
    if (!m->kind->scalar) return true;
    float *alpha = copies_add(c, 1);
    if (!alpha) return error_set(err, "module %s: not enough memory to save it", m->info->flat);
    *alpha = (float)(m->start[0] ? 2 * m->alpha : m->alpha); /* of twice the rank */
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
