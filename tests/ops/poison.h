/* Fills everything that a run makes for itself, working memory included, with NaN: whoever reads before writing is found out. */
#ifndef VULORA_TESTS_POISON_H
#define VULORA_TESTS_POISON_H

#include "base/memory.h"
#include "graph/plan.h"

#include <math.h>
#include <stdlib.h>

static inline bool poison(device *d, tensor *x, error *err) {
    if (!x || x->home != TENSOR_TEMPORARY) return true;
    size_t count = (size_t)tensor_count(x);
    float *values = memory_new(count, sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = NAN;
    bool ok = tensor_write(d, x, values, err);
    free(values);
    return ok;
}

/* t: a tape that has been planned. */
static inline bool poison_temporaries(device *d, const tape *t, error *err) {
    for (int i = 0; i < tape_length(t); i++) {
        const record *r = tape_record(t, i);
        for (int k = 0; k < RECORD_OUTPUTS; k++)
            if (!poison(d, r->out[k], err)) return false;
        if (!poison(d, r->scratch, err)) return false;
    }
    return true;
}

#endif
