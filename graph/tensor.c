#include "graph/tensor.h"

#include <inttypes.h>
#include <stdio.h>

int64_t tensor_count(const tensor *t) { return tensor_rows(t) * tensor_columns(t); }

int64_t tensor_rows(const tensor *t) {
    int64_t rows = 1;
    for (int i = 0; i + 1 < t->rank; i++) rows *= t->dim[i];
    return rows;
}

int64_t tensor_columns(const tensor *t) { return t->rank ? t->dim[t->rank - 1] : 1; }

bool tensor_same_shape(const tensor *a, const tensor *b) {
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

const char *tensor_shape_text(const tensor *t, char out[64]) {
    int used = snprintf(out, 64, "[");
    for (int i = 0; i < t->rank; i++) used += snprintf(out + used, 64 - (size_t)used, "%s%" PRId64, i ? ", " : "", t->dim[i]);
    snprintf(out + used, 64 - (size_t)used, "]");
    return out;
}
