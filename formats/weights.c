#include "formats/weights.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

struct weights {
    const checkpoint *checkpoint;
    checkpoint_part part;
    device *device;
    tensor_pool *pool;
    tensor **loaded; /* by position in the checkpoint's table; NULL: not asked for yet */
};

weights *weights_open(const checkpoint *c, checkpoint_part part, device *d) {
    weights *w = memory_new(1, sizeof *w);
    w->checkpoint = c;
    w->part = part;
    w->device = d;
    w->pool = tensor_pool_create(d);
    w->loaded = memory_new(c->parts[part].count, sizeof(tensor *));
    return w;
}

void weights_close(weights *w) {
    if (!w) return;
    tensor_pool_free(w->pool);
    free(w->loaded);
    free(w);
}

const checkpoint *weights_checkpoint(const weights *w) { return w->checkpoint; }
checkpoint_part weights_part(const weights *w) { return w->part; }

/* Row o of [out][in][tap] to [tap][out][in], for elements of 2 and of 4 bytes. */
static void turn_row_16(uint16_t *out, const uint16_t *in, int64_t o, const int64_t *dims, int64_t taps) {
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t i = 0; i < dims[1]; i++) out[(tap * dims[0] + o) * dims[1] + i] = in[(o * dims[1] + i) * taps + tap];
}

static void turn_row_32(uint32_t *out, const uint32_t *in, int64_t o, const int64_t *dims, int64_t taps) {
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t i = 0; i < dims[1]; i++) out[(tap * dims[0] + o) * dims[1] + i] = in[(o * dims[1] + i) * taps + tap];
}

static void *taps_first(const checkpoint_tensor *c, int64_t taps) {
    void *out = memory_try_aligned(c->bytes);
    if (!out) return NULL;
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < c->dims[0]; o++) {
        if (dtype_size(c->type) == 2)
            turn_row_16(out, c->data, o, c->dims, taps);
        else
            turn_row_32(out, c->data, o, c->dims, taps);
    }
    return out;
}

/* Constants that are copied to the device, or rearranged, leave nothing of the file in memory. */
static tensor *upload(weights *w, const checkpoint_tensor *c, error *err) {
    int64_t taps = c->rank == 4 ? c->dims[2] * c->dims[3] : 1;
    tensor *made;
    if (taps == 1) {
        made = tensor_pool_constant(w->pool, c->name, c->type, c->rank == 4 ? 2 : c->rank, c->dims, c->data, err);
    } else {
        void *data = taps_first(c, taps);
        if (!data) {
            error_set(err, "%s: not enough memory for %zu bytes", c->name, c->bytes);
            return NULL;
        }
        made = tensor_pool_constant_owned(w->pool, c->name, c->type, 3, (int64_t[]){taps, c->dims[0], c->dims[1]}, data, err);
    }
    if (made && made->cpu != c->data) checkpoint_forget(w->checkpoint, c);
    return made;
}

static tensor *load(weights *w, tape *t, const checkpoint_tensor *c) {
    tensor **slot = &w->loaded[c - w->checkpoint->parts[w->part].tensors];
    if (!*slot) {
        error err;
        *slot = upload(w, c, &err);
        if (!*slot) tape_fail(t, "%s", err.text);
    }
    return *slot;
}

tensor *weights_get_optional(weights *w, tape *t, const char *name) {
    const checkpoint_tensor *c = checkpoint_find(w->checkpoint, w->part, name);
    return c ? load(w, t, c) : NULL;
}

tensor *weights_get(weights *w, tape *t, const char *name) {
    error err;
    const checkpoint_tensor *c = checkpoint_need(w->checkpoint, w->part, name, &err);
    return c ? load(w, t, c) : tape_fail(t, "%s", err.text);
}
