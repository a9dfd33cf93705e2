#include "convert/difference.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1024 };

static int trimmed_rank(const checkpoint_tensor *t) {
    int rank = t->rank;
    while (rank > 2 && t->dims[rank - 1] == 1) rank--;
    return rank;
}

static bool same_shape(const checkpoint_tensor *a, const checkpoint_tensor *b) {
    int rank = trimmed_rank(a);
    if (rank != trimmed_rank(b)) return false;
    for (int i = 0; i < rank; i++)
        if (a->dims[i] != b->dims[i]) return false;
    return true;
}

/* Every tensor of `a` is in `b`. */
static bool within(const checkpoint *a, const checkpoint *b, checkpoint_part part, error *err) {
    for (size_t i = 0; i < a->parts[part].count; i++) {
        const checkpoint_tensor *t = &a->parts[part].tensors[i], *other = checkpoint_find(b, part, t->name);
        if (!other)
            return error_set(err, "%s and %s are not of one architecture: only the first has tensor %s of the %s", a->path, b->path,
                             t->name, checkpoint_part_name(part));
        if (same_shape(t, other)) continue;
        char one[96], two[96];
        safetensors_shape_text(one, sizeof one, t->rank, t->dims);
        safetensors_shape_text(two, sizeof two, other->rank, other->dims);
        return error_set(err, "%s and %s are not of one architecture: tensor %s of the %s is %s in the first, %s in the second", a->path,
                         b->path, t->name, checkpoint_part_name(part), one, two);
    }
    return true;
}

bool difference_possible(const checkpoint *base, const checkpoint *tuned, checkpoint_part part, error *err) {
    return within(base, tuned, part, err) && within(tuned, base, part, err);
}

const checkpoint_tensor *difference_partner(const checkpoint *tuned, checkpoint_part part, const checkpoint_tensor *t) {
    return checkpoint_find(tuned, part, t->name);
}

static const void *element(const checkpoint_tensor *t, size_t index) { return (const char *)t->data + index * dtype_size(t->type); }

/* x as it would be read back from a tensor of that type */
static float rounded(float x, dtype type) {
    return type == DTYPE_F16 ? half_to_float(float_to_half(x)) : type == DTYPE_BF16 ? bfloat_to_float(float_to_bfloat(x)) : x;
}

bool difference_none(const checkpoint_tensor *a, const checkpoint_tensor *b) {
    if (a->type == b->type && memcmp(a->data, b->data, a->bytes) == 0) return true;
    float x[CHUNK], y[CHUNK];
    for (size_t done = 0; done < a->elements; done += CHUNK) {
        size_t n = a->elements - done < CHUNK ? a->elements - done : CHUNK;
        dtype_to_f32(x, element(a, done), a->type, n);
        dtype_to_f32(y, element(b, done), b->type, n);
        for (size_t i = 0; i < n; i++)
            if (!(x[i] == y[i] || rounded(x[i], b->type) == y[i] || rounded(y[i], a->type) == x[i])) return false;
    }
    return true;
}

static bool check_finite(const checkpoint_tensor *t, error *err) {
    if (safetensors_first_nonfinite(t->data, t->type, t->elements) == t->elements) return true;
    return error_set(err, "%s: tensor %s has NaN or infinity in it", t->file, t->stored);
}

float *difference_values(const checkpoint_tensor *base, const checkpoint_tensor *tuned, error *err) {
    if (!check_finite(base, err) || !check_finite(tuned, err)) return NULL;
    float *out = memory_try_aligned(base->elements * sizeof *out), chunk[CHUNK];
    if (!out) {
        error_set(err, "tensor %s: not enough memory for its difference", base->stored);
        return NULL;
    }
    dtype_to_f32(out, tuned->data, tuned->type, base->elements);
    for (size_t done = 0; done < base->elements; done += CHUNK) {
        size_t n = base->elements - done < CHUNK ? base->elements - done : CHUNK;
        dtype_to_f32(chunk, element(base, done), base->type, n);
        for (size_t i = 0; i < n; i++) out[done + i] -= chunk[i];
    }
    return out;
}

bool difference_measure(const checkpoint_tensor *base, const checkpoint_tensor *tuned, difference_size *out, error *err) {
    float *values = difference_values(base, tuned, err), chunk[CHUNK];
    if (!values) return false;
    *out = (difference_size){0};
    for (size_t i = 0; i < base->elements; i++) {
        out->norm += (double)values[i] * values[i];
        out->largest = fmax(out->largest, fabs((double)values[i]));
    }
    for (size_t done = 0; done < base->elements; done += CHUNK) {
        size_t n = base->elements - done < CHUNK ? base->elements - done : CHUNK;
        dtype_to_f32(chunk, element(base, done), base->type, n);
        for (size_t i = 0; i < n; i++) out->base_norm += (double)chunk[i] * chunk[i];
    }
    out->norm = sqrt(out->norm), out->base_norm = sqrt(out->base_norm);
    free(values);
    return true;
}
