#include "convert/draft.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

draft_module *draft_add(draft *d, const module_info *info, const adapter_kind *kind) {
    d->modules = memory_grow(d->modules, (size_t)d->count + 1, sizeof *d->modules);
    draft_module *m = &d->modules[d->count++];
    *m = (draft_module){.info = info, .kind = kind, .scale = 1, .alpha_type = DTYPE_F32};
    return m;
}

void draft_put(draft_module *m, const char *part, int rank, const int64_t *dims, float *values, dtype type, bool computed) {
    draft_tensor *t = &m->tensors[m->count++];
    *t = (draft_tensor){.part = part, .rank = rank, .elements = 1, .values = values, .type = draft_writable(type), .computed = computed};
    for (int i = 0; i < rank; i++) {
        t->dims[i] = dims[i];
        t->elements *= (size_t)dims[i];
    }
}

draft_tensor *draft_find(const draft_module *m, const char *part) {
    for (int i = 0; i < m->count; i++)
        if (strcmp(m->tensors[i].part, part) == 0) return (draft_tensor *)&m->tensors[i];
    return NULL;
}

void draft_free(draft *d) {
    for (int i = 0; i < d->count; i++)
        for (int k = 0; k < d->modules[i].count; k++) free(d->modules[i].tensors[k].values);
    free(d->modules);
    *d = (draft){0};
}

void draft_put_lora(draft *d, const module_info *info, int64_t rank, double alpha, float *up, float *down, dtype type) {
    draft_module *m = draft_add(d, info, &adapter_kind_lora);
    int dims = info->convolution ? 4 : 2;
    int64_t kernel = info->kernel, down_dims[] = {rank, info->in, kernel, kernel}, up_dims[] = {info->out, rank, 1, 1};
    m->rank = rank;
    m->alpha = alpha;
    m->scale = alpha / (double)rank;
    m->alpha_type = draft_writable(type);
    draft_put(m, "lora_down.weight", dims, down_dims, down, type, true);
    draft_put(m, "lora_up.weight", dims, up_dims, up, type, true);
}

/* ---- Types ---- */

dtype draft_writable(dtype type) {
    if (type == DTYPE_F16 || type == DTYPE_BF16) return type;
    return type == DTYPE_F8_E4M3 || type == DTYPE_F8_E5M2 ? DTYPE_F16 : DTYPE_F32;
}

static float rounded(dtype type, float value) {
    return type == DTYPE_F16 ? half_to_float(float_to_half(value)) : bfloat_to_float(float_to_bfloat(value));
}

enum { NEGLIGIBLE = -20 }; /* power of two, of the largest value: what the smallest ones may lose where half precision runs out of digits */

static bool holds(dtype type, const float *values, size_t n) {
    float largest = 0;
    if (type == DTYPE_F32) return true;
    for (size_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(values[i]));
    float slack = ldexpf(largest, NEGLIGIBLE);
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(rounded(type, values[i]) - values[i]) <= slack)) return false;
    return true;
}

dtype draft_type(const draft_module *m, const draft_tensor *t, dtype wanted) {
    if (wanted != DTYPE_COUNT) return wanted;
    for (int i = 0; i < m->count; i++) {
        const draft_tensor *u = &m->tensors[i];
        if (u->computed && !holds(u->type, u->values, u->elements)) return DTYPE_F32;
    }
    return t->type;
}

dtype draft_alpha_type(const draft_module *m, dtype wanted) {
    if (wanted != DTYPE_COUNT) return wanted;
    float alpha = (float)m->alpha;
    return holds(m->alpha_type, &alpha, 1) ? m->alpha_type : DTYPE_F32;
}
