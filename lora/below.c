#include "lora/below.h"

#include "base/memory.h"
#include "lora/change.h"

#include <stdlib.h>
#include <string.h>

typedef struct known_change {
    char *key;
    tensor *value;
} known_change;

typedef struct host_copy {
    const adapter *of;
    adapter *copy;
} host_copy;

struct adapter_below {
    device *host;
    host_copy *copies;
    int copy_count;
    tensor_pool *pool;
    known_change *known;
    int known_count;
};

adapter_below *adapter_below_create(void) { return memory_new(1, sizeof(adapter_below)); }

void adapter_below_free(adapter_below *b) {
    if (!b) return;
    for (int i = 0; i < b->copy_count; i++) adapter_free(b->copies[i].copy);
    for (int i = 0; i < b->known_count; i++) free(b->known[i].key);
    tensor_pool_free(b->pool);
    device_close(b->host);
    free(b->copies);
    free(b->known);
    free(b);
}

/* Tapes may still hold the tensors; they go with b. */
void adapter_below_forget(adapter_below *b, const adapter *a) {
    for (int i = 0; i < b->copy_count; i++)
        if (b->copies[i].of == a) b->copies[i].of = NULL;
    for (int i = 0; i < b->known_count; i++) b->known[i].key[0] = 0;
}

static char *key_of(const adapter_layer *layers, int count, const module_info *info) {
    char *key = memory_string(info->flat);
    for (int i = 0; i < count; i++) {
        char *longer = memory_format("%s %p %.9g", key, (const void *)layers[i].adapter, (double)layers[i].weight);
        free(key);
        key = longer;
    }
    return key;
}

/* The adapter on the processor, in fp32. */
static const adapter *host_adapter(adapter_below *b, const adapter *a, error *err) {
    for (int i = 0; i < b->copy_count; i++)
        if (b->copies[i].of == a) return b->copies[i].copy;
    if (!a->device->gpu && a->device->activation == DTYPE_F32) return a;
    if (!b->host) b->host = device_open("cpu", "fp32", 0, err);
    adapter *copy = b->host ? adapter_load(a->path, a->table, b->host, false, NULL, err) : NULL;
    if (!copy) return NULL;
    b->copies = memory_grow(b->copies, (size_t)b->copy_count + 1, sizeof *b->copies);
    b->copies[b->copy_count++] = (host_copy){a, copy};
    return copy;
}

/* [out, in, taps] of now - before to [taps, out, in]. */
static void turn(const float *now, const float *before, const module_info *info, float *engine) {
    int64_t pairs = info->out * info->in, taps = (int64_t)info->kernel * info->kernel;
    for (int64_t i = 0; i < pairs; i++)
        for (int64_t k = 0; k < taps; k++) engine[k * pairs + i] = now[i * taps + k] - before[i * taps + k];
}

static bool change_values(adapter_below *b, const adapter_layer *layers, int count, const module_info *info, float *now, error *err) {
    for (int i = 0; i < count; i++) {
        const adapter *a = host_adapter(b, layers[i].adapter, err);
        const adapter_module *m = a ? adapter_find_module(a, info->part, info->name) : NULL;
        if (!m || !change_add(a, m, layers[i].weight, now, err)) return false;
    }
    return true;
}

tensor *adapter_below_change(adapter_below *b, const adapter_layer *layers, int count, const module_info *info, error *err) {
    char *key = key_of(layers, count, info);
    for (int i = 0; i < b->known_count; i++)
        if (strcmp(b->known[i].key, key) == 0) {
            free(key);
            return b->known[i].value;
        }
    for (int i = 0; i < count; i++)
        if (layers[i].adapter->trainable || !layers[i].adapter->path) {
            free(key);
            error_set(err, "module %s: a DoRA on top of an adapter that is being trained", info->flat);
            return NULL;
        }
    const checkpoint_tensor *w = info->weight;
    float *before = memory_try_aligned(w->elements * sizeof *before), *now = memory_try_aligned(w->elements * sizeof *now);
    float *engine = memory_try_aligned(w->elements * sizeof *engine);
    tensor *value = NULL;
    if (!before || !now || !engine) {
        error_set(err, "module %s: not enough memory for its weight", info->flat);
    } else {
        dtype_to_f32(before, w->data, w->type, w->elements);
        memcpy(now, before, w->elements * sizeof *now);
        if (!b->pool) b->pool = tensor_pool_create(layers[0].adapter->device);
        int64_t taps = (int64_t)info->kernel * info->kernel, dims[] = {taps, info->out, info->in};
        bool flat = taps == 1;
        if (change_values(b, layers, count, info, now, err)) {
            turn(now, before, info, engine);
            value = tensor_pool_parameter(b->pool, info->flat, flat ? 2 : 3, flat ? dims + 1 : dims, err);
            if (value && !tensor_write(layers[0].adapter->device, value, engine, err)) value = NULL;
        }
    }
    free(before);
    free(now);
    free(engine);
    if (!value) {
        free(key);
        return NULL;
    }
    b->known = memory_grow(b->known, (size_t)b->known_count + 1, sizeof *b->known);
    b->known[b->known_count++] = (known_change){key, value};
    return value;
}
