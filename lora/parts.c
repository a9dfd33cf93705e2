#include "lora/parts.h"

#include "base/memory.h"
#include "base/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool part_is_matrix(const safetensors_tensor *t, int64_t rows, int64_t columns) {
    bool matrix = t->rank == 2 || (t->rank == 4 && t->dims[2] == 1 && t->dims[3] == 1);
    return matrix && t->dims[0] == rows && t->dims[1] == columns;
}

bool part_is_kernel(const safetensors_tensor *t, int64_t out, int64_t in, int kernel) {
    return t->rank == 4 && t->dims[0] == out && t->dims[1] == in && t->dims[2] == kernel && t->dims[3] == kernel;
}

bool part_shape_error(const adapter_module *m, const safetensors_tensor *t, error *err) {
    char shape[128], weight[128];
    const module_info *info = m->info;
    int64_t dims[4] = {info->out, info->in, info->kernel, info->kernel};
    safetensors_shape_text(shape, sizeof shape, t->rank, t->dims);
    safetensors_shape_text(weight, sizeof weight, info->convolution ? 4 : 2, dims);
    return error_set(err, "%s is %s, but the model's weight there is %s: the adapter was made for another model size", t->name, shape,
                     weight);
}

bool part_missing_error(const adapter_group *g, const char *present, const char *missing, error *err) {
    return error_set(err, "has %s but no %s", adapter_group_part(g, present)->tensor->name, missing);
}

bool part_load(adapter *a, adapter_module *m, int index, const adapter_part *part, adapter_layout layout, error *err) {
    return part_load_scaled(a, m, index, part, layout, 1, err);
}

bool part_load_scaled(adapter *a, adapter_module *m, int index, const adapter_part *part, adapter_layout layout, float factor, error *err) {
    float *values = adapter_part_read(part, err);
    if (!values) return false;
    const safetensors_tensor *t = part->tensor;
    for (size_t i = 0; factor != 1 && i < t->elements; i++) values[i] *= factor;
    bool ok = adapter_put_tensor(a, m, index, t->name, t->rank, t->dims, layout, values, err);
    free(values);
    return ok;
}

bool part_load_scale(adapter_module *m, const adapter_file *file, const adapter_group *g, int64_t rank, error *err) {
    bool has_scale, has_alpha, has_config = false;
    double alpha = (double)rank;
    m->scale = 1;
    m->rank = rank;
    if (!adapter_group_scalar(g, "scale", &m->scale, &has_scale, err) || !adapter_group_scalar(g, "alpha", &alpha, &has_alpha, err))
        return false;
    if (alpha == 0) alpha = (double)rank;
    if (!has_scale && has_alpha && rank) m->scale = alpha / (double)rank;
    if (!has_scale && !has_alpha && !adapter_file_peft_scale(file, g, rank, &has_config, &m->scale, err)) return false;
    m->alpha = m->scale * (double)(rank ? rank : 1);
    return true;
}

/* FNV-1a of the name. */
static uint64_t name_stream(const char *name) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
    return hash;
}

static void fill_values(float *values, size_t count, double fan_in, double rows, part_fill fill, uint64_t seed, uint64_t stream) {
    double bound = 1 / sqrt(fan_in), deviation = fill == PART_NORMAL_TENTH ? 0.1 : fill == PART_NORMAL_RANK ? 1 / rows : 1;
    for (size_t i = 0; i < count; i++) {
        if (fill == PART_KAIMING) {
            values[i] = (float)((random_uniform(seed, stream, i) * 2 - 1) * bound);
        } else if (fill == PART_ONES) {
            values[i] = 1;
        } else { /* Box and Muller */
            double u = 1 - random_uniform(seed, stream, 2 * i), angle = 6.283185307179586 * random_uniform(seed, stream, 2 * i + 1);
            values[i] = (float)(sqrt(-2 * log(u)) * cos(angle) * deviation);
        }
    }
}

bool part_new(adapter *a, adapter_module *m, int index, int rank, const int64_t *dims, adapter_layout layout, part_fill fill, uint64_t seed,
              error *err) {
    char *name = memory_format("%s.%s", m->info->flat, m->kind->parts[index]);
    size_t count = 1;
    for (int i = 0; i < rank; i++) count *= (size_t)dims[i];
    float *values = NULL;
    if (fill != PART_ZEROS) {
        values = memory_new(count, sizeof *values);
        /* The first tensor keeps the stream of its module's name, with which LoRA's numbers have always been drawn. */
        fill_values(values, count, (double)(count / (size_t)dims[0]), (double)dims[0], fill, seed,
                    name_stream(index ? name : m->info->flat));
    }
    bool ok = adapter_put_tensor(a, m, index, name, rank, dims, layout, values, err);
    free(values);
    free(name);
    return ok;
}

tensor *part_factor(const adapter_module *m, tape *t, int index) {
    tensor *value = part_value(m, index), *scalar = part_value(m, ADAPTER_SCALAR);
    if (!value || !scalar || !(m->kind->scaled & 1u << index)) return value;
    products_shape s = {
        .rows_a = value->dim[value->rank - 2], .columns_a = tensor_columns(value), .rows_b = 1, .columns_b = 1, .factor = true, .scale = 1};
    return op_products(t, value, scalar, s);
}

bool part_new_scalar(adapter *a, adapter_module *m, error *err) {
    char *name = memory_format("%s.scalar", m->info->flat);
    bool ok = adapter_put_tensor(a, m, ADAPTER_SCALAR, name, 1, (int64_t[]){1}, ADAPTER_VECTOR, NULL, err);
    free(name);
    return ok;
}
