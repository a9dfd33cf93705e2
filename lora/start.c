#include "lora/start.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DOWN, UP };

bool adapter_start_new(adapter *a, adapter_module *m, error *err) {
    if (!a->starts) a->starts = tensor_pool_create(a->device);
    for (int i = DOWN; i <= UP; i++) {
        const tensor *x = m->tensors[i].value;
        size_t bytes = (size_t)tensor_count(x) * sizeof(float);
        m->start[i] = tensor_pool_parameter(a->starts, x->name, x->rank, x->dim, err);
        float *zeros = m->start[i] ? memory_try_aligned(bytes) : NULL;
        if (!m->start[i]) return false;
        if (!zeros) return error_set(err, "tensor %s: not enough memory for %zu bytes", x->name, bytes);
        memset(zeros, 0, bytes);
        bool ok = tensor_write(a->device, m->start[i], zeros, err);
        free(zeros);
        if (!ok) return false;
    }
    return true;
}

bool adapter_start_read(const adapter *a, const adapter_module *m, int index, float *file, error *err) {
    float *engine = memory_new((size_t)tensor_count(m->start[index]), sizeof *engine);
    bool ok = tensor_read(a->device, m->start[index], engine, err);
    if (ok) adapter_tensor_to_file(&m->tensors[index], engine, file);
    free(engine);
    return ok;
}

static bool write(const adapter *a, const adapter_module *m, int index, const float *file, bool also_value, error *err) {
    float *engine = memory_new((size_t)tensor_count(m->start[index]), sizeof *engine);
    adapter_tensor_from_file(&m->tensors[index], file, engine);
    bool ok = tensor_write(a->device, m->start[index], engine, err) &&
              (!also_value || tensor_write(a->device, m->tensors[index].value, engine, err));
    free(engine);
    return ok;
}

bool adapter_start_write(const adapter *a, const adapter_module *m, int index, const float *file, error *err) {
    return write(a, m, index, file, false, err);
}

bool adapter_start_set(const adapter *a, const adapter_module *m, int64_t count, const float *u, const float *s, const float *vt,
                       error *err) {
    int64_t r = m->rank, in = tensor_count(m->tensors[DOWN].value) / r, out = m->info->out, used = count < r ? count : r;
    float *down = memory_new((size_t)(r * in), sizeof *down), *up = memory_new((size_t)(out * r), sizeof *up);
    for (int64_t k = 0; k < used; k++) {
        float root = (float)sqrt((double)s[k] / m->scale);
        for (int64_t i = 0; i < in; i++) down[k * in + i] = root * vt[k * in + i];
        for (int64_t o = 0; o < out; o++) up[o * r + k] = root * u[o * count + k];
    }
    bool ok = write(a, m, DOWN, down, true, err) && write(a, m, UP, up, true, err);
    free(down);
    free(up);
    return ok;
}

bool adapter_start_append(const adapter *a, const adapter_module *m, int index, float *both, int64_t *dims, error *err) {
    int64_t n = adapter_tensor_elements(&m->tensors[index]), r = m->rank, out = n / r;
    if (index == DOWN) {
        dims[0] *= 2;
        return adapter_start_read(a, m, DOWN, both + n, err);
    }
    float *first = memory_new((size_t)n, sizeof *first);
    bool ok = adapter_start_read(a, m, UP, first, err);
    /* From the last row on, so that none is written over before it is moved. */
    for (int64_t o = out; ok && o-- > 0;) {
        memmove(both + 2 * o * r, both + o * r, (size_t)r * sizeof *both);
        for (int64_t k = 0; k < r; k++) both[(2 * o + 1) * r + k] = -first[o * r + k];
    }
    dims[1] *= 2;
    free(first);
    return ok;
}
