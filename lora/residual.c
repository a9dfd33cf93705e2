#include "lora/residual.h"

#include "base/memory.h"
#include "lora/parts.h"

#include <stdlib.h>
#include <string.h>

enum { DENSE, INDICES, VALUES, SIZE, PARTS };

static const char *const NAMES[PARTS] = {"bias", "bias_indices", "bias_values", "bias_size"};

bool adapter_residual_part(const adapter_kind *kind, const char *part) {
    for (int i = 0; kind->difference && i < PARTS; i++)
        if (strcmp(part, NAMES[i]) == 0) return true;
    return false;
}

static float *read_numbers(const safetensors_tensor *t, error *err) {
    float *values = memory_try_aligned((t->elements + 1) * sizeof *values);
    if (values)
        dtype_to_f32(values, t->data, t->type, t->elements);
    else
        error_set(err, "tensor %s: not enough memory", t->name);
    return values;
}

/* indices: [2, n], row and column of each value in the weight as [out, in * kernel * kernel]. */
static bool scatter(const adapter_part *const parts[PARTS], float *dense, int64_t rows, int64_t columns, error *err) {
    const safetensors_tensor *where = parts[INDICES]->tensor, *what = parts[VALUES]->tensor, *size = parts[SIZE]->tensor;
    int64_t n = (int64_t)what->elements;
    if (where->rank != 2 || where->dims[0] != 2 || where->dims[1] != n)
        return error_set(err, "%s holds no pair of indices for each of the %lld numbers of %s", where->name, (long long)n, what->name);
    float *index = read_numbers(where, err), *value = adapter_part_read(parts[VALUES], err), *shape = read_numbers(size, err);
    bool ok = index && value && shape;
    if (ok && (size->elements != 2 || shape[0] != (float)rows || shape[1] != (float)columns))
        ok = error_set(err, "%s says another size than that of the model's weight there, [%lld, %lld]", size->name, (long long)rows,
                       (long long)columns);
    for (int64_t i = 0; ok && i < n; i++) {
        float row = index[i], column = index[n + i];
        if (!(row >= 0 && row < (float)rows && column >= 0 && column < (float)columns))
            ok = error_set(err, "%s points outside the weight (element %lld)", where->name, (long long)i);
        else
            dense[(int64_t)row * columns + (int64_t)column] += value[i];
    }
    free(index);
    free(value);
    free(shape);
    return ok;
}

static bool load_sparse(adapter *a, adapter_module *m, const adapter_part *const parts[PARTS], error *err) {
    const module_info *info = m->info;
    int64_t columns = info->in * info->kernel * info->kernel, dims[] = {info->out, info->in, info->kernel, info->kernel};
    size_t bytes = (size_t)(info->out * columns) * sizeof(float);
    float *dense = memory_try_aligned(bytes);
    if (!dense) return error_set(err, "not enough memory for its residual");
    memset(dense, 0, bytes);
    adapter_layout layout = info->kernel > 1 ? ADAPTER_TAPS : ADAPTER_MATRIX;
    char *name = memory_format("%s.%s", info->flat, NAMES[DENSE]);
    bool ok = scatter(parts, dense, info->out, columns, err) &&
              adapter_put_tensor(a, m, ADAPTER_RESIDUAL, name, info->convolution ? 4 : 2, dims, layout, dense, err);
    free(name);
    free(dense);
    return ok;
}

bool adapter_residual_load(adapter *a, adapter_module *m, const adapter_group *g, error *err) {
    const adapter_part *parts[PARTS];
    int sparse = 0;
    for (int i = DENSE; i < PARTS; i++) {
        parts[i] = adapter_group_part(g, NAMES[i]);
        sparse += i != DENSE && parts[i];
    }
    if (!parts[DENSE] && !sparse) return true;
    const module_info *info = m->info;
    if (parts[DENSE] && sparse) return error_set(err, "has %s and also %s", NAMES[DENSE], NAMES[INDICES]);
    for (int i = INDICES; sparse && i < PARTS; i++)
        if (!parts[i]) return error_set(err, "has a sparse residual, but no %s", NAMES[i]);
    if (a->trainable) return error_set(err, "has a residual beside its factors, which can be applied but not trained");
    if (sparse) return load_sparse(a, m, parts, err);
    const safetensors_tensor *t = parts[DENSE]->tensor;
    bool taps = info->kernel > 1;
    if (!(taps ? part_is_kernel(t, info->out, info->in, info->kernel) : part_is_matrix(t, info->out, info->in)))
        return part_shape_error(m, t, err);
    return part_load(a, m, ADAPTER_RESIDUAL, parts[DENSE], taps ? ADAPTER_TAPS : ADAPTER_MATRIX, err);
}

tensor *adapter_module_branch(const adapter_module *m, const adapter_chain *c, tensor *x, tensor *y, float factor) {
    tensor *residual = part_value(m, ADAPTER_RESIDUAL);
    y = m->kind->branch(m, c, x, y, factor);
    if (!residual) return y;
    factor *= (float)m->scale;
    if (residual->rank == 2) return op_linear(c->tape, x, residual, NULL, y, factor);
    if (factor != 1) residual = op_scale_columns(c->tape, residual, (column_scale){.a = factor});
    return op_conv2d(c->tape, x, residual, NULL, y, NULL, *c->site->conv);
}

tensor *adapter_module_difference(const adapter_module *m, tape *t) {
    tensor *difference = m->kind->difference(m, t), *residual = part_value(m, ADAPTER_RESIDUAL);
    if (!difference || !residual) return difference;
    return op_scale_columns(t, difference, (column_scale){.a = 1, .residual = residual, .c = (float)m->scale});
}
