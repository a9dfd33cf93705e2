#include "lora/adapter.h"

#include "base/memory.h"
#include "lora/words.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void adapter_free(adapter *a) {
    if (!a) return;
    for (int i = 0; i < a->module_count; i++)
        for (int j = 0; j < ADAPTER_MODULE_TENSORS; j++) free(a->modules[i].tensors[j].name);
    free(a->modules);
    adapter_words_free(a);
    tensor_pool_free(a->pool);
    tensor_pool_free(a->gradients);
    tensor_pool_free(a->starts);
    free(a->path);
    free(a);
}

void adapter_report_free(adapter_report *report) {
    for (int i = 0; i < report->unapplied_count; i++) free(report->unapplied[i]);
    free(report->unapplied);
    *report = (adapter_report){0};
}

void adapter_report_text(const adapter_report *report, const char *path, int most, char *out, size_t size) {
    if (size > 0) out[0] = 0;
    if (report->unapplied_count == 0 || size == 0) return;
    int shown = report->unapplied_count < most ? report->unapplied_count : most;
    int used = snprintf(out, size, "%s: %d of %d modules applied; without effect: ", path, report->applied, report->total);
    for (int i = 0; i < shown && used > 0 && (size_t)used < size; i++)
        used += snprintf(out + used, size - (size_t)used, "%s%s", i ? ", " : "", report->unapplied[i]);
    if (shown < report->unapplied_count && used > 0 && (size_t)used < size)
        snprintf(out + used, size - (size_t)used, " and %d more", report->unapplied_count - shown);
}

/* ---- Tensors in their order ---- */

int adapter_tensor_count(const adapter *a) {
    int count = 0;
    for (int i = 0; i < a->module_count; i++)
        for (int j = 0; j < ADAPTER_MODULE_TENSORS; j++) count += a->modules[i].tensors[j].value != NULL;
    return count;
}

const adapter_tensor *adapter_tensor_at(const adapter *a, int index, const adapter_module **module) {
    for (int i = 0; i < a->module_count; i++)
        for (int j = 0; j < ADAPTER_MODULE_TENSORS; j++) {
            if (!a->modules[i].tensors[j].value || index-- > 0) continue;
            if (module) *module = &a->modules[i];
            return &a->modules[i].tensors[j];
        }
    return NULL;
}

const adapter_tensor *adapter_tensor_find(const adapter *a, const char *name) {
    for (int i = 0; i < a->module_count; i++)
        for (int j = 0; j < ADAPTER_MODULE_TENSORS; j++) {
            const adapter_tensor *t = &a->modules[i].tensors[j];
            if (t->value && strcmp(t->name, name) == 0) return t;
        }
    return NULL;
}

int64_t adapter_tensor_elements(const adapter_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= t->dims[i];
    return n;
}

int64_t adapter_parameters(const adapter *a) {
    int64_t n = 0;
    for (int i = 0; i < a->module_count; i++)
        for (int j = 0; j < ADAPTER_MODULE_TENSORS; j++)
            if (a->modules[i].tensors[j].value) n += adapter_tensor_elements(&a->modules[i].tensors[j]);
    return n;
}

const adapter_module *adapter_find_module(const adapter *a, checkpoint_part part, const char *name) {
    char flat[256];
    if (!module_flat_name(part, name, flat, sizeof flat)) return NULL;
    int low = 0, high = a->module_count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(flat, a->modules[middle].info->flat);
        if (order == 0) return &a->modules[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* ---- Layouts ---- */

/* file: [pairs, taps], engine: [taps, pairs], a pair being (out, in). */
static void taps_swap(const float *from, float *to, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) to[j * rows + i] = from[i * columns + j];
}

/* A tensor as [rows, columns] in the file whose transpose is the engine's order; false: both are the same. */
static bool swapped_shape(const adapter_tensor *t, int64_t *rows, int64_t *columns) {
    bool taps = t->layout == ADAPTER_TAPS || t->layout == ADAPTER_FLAT_TAPS;
    if (!taps && t->layout != ADAPTER_TRANSPOSED) return false;
    *columns = taps ? t->taps : t->dims[1];
    *rows = adapter_tensor_elements(t) / *columns;
    return true;
}

void adapter_tensor_to_file(const adapter_tensor *t, const float *engine, float *file) {
    int64_t rows, columns;
    if (swapped_shape(t, &rows, &columns))
        taps_swap(engine, file, columns, rows);
    else
        memcpy(file, engine, (size_t)adapter_tensor_elements(t) * sizeof *file);
}

void adapter_tensor_from_file(const adapter_tensor *t, const float *file, float *engine) {
    int64_t rows, columns;
    if (swapped_shape(t, &rows, &columns))
        taps_swap(file, engine, rows, columns);
    else
        memcpy(engine, file, (size_t)adapter_tensor_elements(t) * sizeof *engine);
}

/* ---- Putting a tensor onto the device ---- */

/* Shape in the engine; returns its rank. */
static int engine_shape(const adapter_tensor *t, int64_t dim[TENSOR_RANK]) {
    int64_t count = adapter_tensor_elements(t);
    switch (t->layout) {
    case ADAPTER_TAPS:
    case ADAPTER_FLAT_TAPS:
        dim[0] = t->taps;
        dim[1] = t->dims[0];
        dim[2] = count / (t->taps * t->dims[0]);
        return 3;
    case ADAPTER_TRANSPOSED:
        dim[0] = t->dims[1];
        dim[1] = t->dims[0];
        return 2;
    case ADAPTER_VECTOR: dim[0] = count; return 1;
    case ADAPTER_MATRIX: break;
    }
    int rank = t->rank == 4 && t->dims[2] == 1 && t->dims[3] == 1 ? 2 : t->rank;
    for (int i = 0; i < rank; i++) dim[i] = t->dims[i];
    return rank;
}

static bool put_parameter(adapter *a, adapter_tensor *t, int rank, const int64_t *dim, float *values, error *err) {
    t->value = tensor_pool_parameter(a->pool, t->name, rank, dim, err);
    if (!t->value) return false;
    t->value->needs_grad = true;
    t->value->grad = tensor_pool_parameter(a->gradients, t->name, rank, dim, err);
    return t->value->grad && tensor_write(a->device, t->value, values, err);
}

bool adapter_put_tensor(adapter *a, adapter_module *m, int index, const char *name, int rank, const int64_t *dims, adapter_layout layout,
                        const float *file_values, error *err) {
    adapter_tensor *t = &m->tensors[index];
    t->name = memory_string(name);
    t->rank = rank;
    memcpy(t->dims, dims, (size_t)rank * sizeof *dims);
    t->layout = layout;
    t->rate = 1;
    t->taps = layout == ADAPTER_TAPS ? (int)(dims[2] * dims[3]) : m->info->kernel * m->info->kernel;
    int64_t dim[TENSOR_RANK];
    int engine_rank = engine_shape(t, dim);
    size_t bytes = (size_t)adapter_tensor_elements(t) * sizeof(float);
    float *values = memory_try_aligned(bytes);
    if (!values) return error_set(err, "tensor %s: not enough memory for %zu bytes", name, bytes);
    if (file_values)
        adapter_tensor_from_file(t, file_values, values);
    else
        memset(values, 0, bytes);
    if (a->trainable) {
        bool ok = put_parameter(a, t, engine_rank, dim, values, err);
        free(values);
        return ok;
    }
    t->value = tensor_pool_constant_owned(a->pool, t->name, DTYPE_F32, engine_rank, dim, values, err);
    return t->value != NULL;
}
