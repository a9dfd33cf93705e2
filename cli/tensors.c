#include "cli/tensors.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

static const safetensors_tensor *find(const safetensors *in, const char *name, const char *shape, int rank, int64_t *dims, error *err) {
    const safetensors_tensor *t = safetensors_find(in, name);
    char have[128];
    if (!t) {
        error_set(err, "%s: has no tensor %s; this part needs it, of shape %s", in->path, name, shape);
        return NULL;
    }
    bool fits = t->rank == rank;
    for (int i = 0; fits && i < rank; i++) fits = dims[i] < 0 ? t->dims[i] >= 1 && t->dims[i] < 1 << 24 : t->dims[i] == dims[i];
    if (!fits) {
        char want[128];
        safetensors_shape_text(have, sizeof have, t->rank, t->dims);
        safetensors_shape_text(want, sizeof want, rank, dims);
        error_set(err, "%s: tensor %s is %s, it must be %s (here %s, -1: any)", in->path, name, have, shape, want);
        return NULL;
    }
    for (int i = 0; i < rank; i++) dims[i] = t->dims[i];
    return t;
}

bool tensors_read(const safetensors *in, const char *name, const char *shape, int rank, int64_t *dims, float **values, error *err) {
    const safetensors_tensor *t = find(in, name, shape, rank, dims, err);
    if (!t) return false;
    size_t bad = safetensors_first_nonfinite(t->data, t->type, t->elements);
    if (bad < t->elements) return error_set(err, "%s: tensor %s has NaN or infinity in it (element %zu)", in->path, name, bad);
    *values = safetensors_read_f32(in, t, err);
    return *values != NULL;
}

bool tensors_read_ints(const safetensors *in, const char *name, const char *shape, int rank, int64_t *dims, int32_t low, int32_t high,
                       int32_t **values, error *err) {
    const safetensors_tensor *t = find(in, name, shape, rank, dims, err);
    if (!t) return false;
    /* Whole numbers of this size are exact in float32. */
    float *read = safetensors_read_f32(in, t, err);
    if (!read) return false;
    int32_t *out = memory_new(t->elements ? t->elements : 1, sizeof *out);
    for (size_t i = 0; i < t->elements; i++) {
        if (!(read[i] >= (float)low && read[i] <= (float)high) || read[i] != floorf(read[i])) {
            error_set(err, "%s: tensor %s: element %zu is %g, it must be a whole number from %d to %d", in->path, name, i, (double)read[i],
                      low, high);
            free(read);
            free(out);
            return false;
        }
        out[i] = (int32_t)read[i];
    }
    free(read);
    *values = out;
    return true;
}

bool tensors_write(safetensors_writer *out, const char *path, error *err) {
    bool ok = safetensors_writer_write(out, path, err);
    safetensors_writer_free(out);
    return ok;
}
