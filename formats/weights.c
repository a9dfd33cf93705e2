#include "formats/weights.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* What a constant is made from; lives as long as the weights. */
typedef struct source {
    const checkpoint *checkpoint;
    const checkpoint_tensor *tensor;
    int64_t taps;
} source;

struct weights {
    const checkpoint *checkpoint;
    checkpoint_part part;
    device *device;
    tensor_pool *pool;
    tensor **declared; /* by position in the checkpoint's table; NULL: not asked for yet */
    source *sources;   /* the same */
};

weights *weights_open(const checkpoint *c, checkpoint_part part, device *d) {
    weights *w = memory_new(1, sizeof *w);
    w->checkpoint = c;
    w->part = part;
    w->device = d;
    w->pool = tensor_pool_create(d);
    w->declared = memory_new(c->parts[part].count, sizeof(tensor *));
    w->sources = memory_new(c->parts[part].count, sizeof(source));
    return w;
}

void weights_close(weights *w) {
    if (!w) return;
    tensor_pool_free(w->pool);
    /* Also those that were used where they lie in the file, and the token embedding, which is read there. */
    const checkpoint_table *part = &w->checkpoint->parts[w->part];
    for (size_t i = 0; i < part->count; i++) checkpoint_forget(w->checkpoint, &part->tensors[i]);
    free(w->declared);
    free(w->sources);
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

static const void *source_get(void *user, void **owned, error *err) {
    const source *s = user;
    if (s->taps == 1) return s->tensor->data;
    *owned = taps_first(s->tensor, s->taps);
    if (!*owned) error_set(err, "%s: not enough memory for %zu bytes", s->tensor->name, s->tensor->bytes);
    return *owned;
}

/* Constants that are copied to the device, or rearranged, leave nothing of the file in memory. */
static void source_done(void *user) {
    const source *s = user;
    checkpoint_forget(s->checkpoint, s->tensor);
}

static tensor *declare(weights *w, const checkpoint_tensor *c) {
    int64_t taps = c->rank == 4 ? c->dims[2] * c->dims[3] : 1;
    source *s = &w->sources[c - w->checkpoint->parts[w->part].tensors];
    *s = (source){w->checkpoint, c, taps};
    constant_source from = {source_get, source_done, s};
    if (taps == 1) return tensor_pool_declare(w->pool, c->name, c->type, c->rank == 4 ? 2 : c->rank, c->dims, from);
    return tensor_pool_declare(w->pool, c->name, c->type, 3, (int64_t[]){taps, c->dims[0], c->dims[1]}, from);
}

static tensor *declared(weights *w, const checkpoint_tensor *c) {
    tensor **slot = &w->declared[c - w->checkpoint->parts[w->part].tensors];
    if (!*slot) *slot = declare(w, c);
    return *slot;
}

tensor *weights_get_optional(weights *w, const char *name) {
    const checkpoint_tensor *c = checkpoint_find(w->checkpoint, w->part, name);
    return c ? declared(w, c) : NULL;
}

tensor *weights_get(weights *w, tape *t, const char *name) {
    error err;
    const checkpoint_tensor *c = checkpoint_need(w->checkpoint, w->part, name, &err);
    return c ? declared(w, c) : tape_fail(t, "%s", err.text);
}
