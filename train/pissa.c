/* PiSSA's beginning (lora/start.h): singular value decompositions of all the weights that are adapted. */
#include "base/memory.h"
#include "convert/svd.h"
#include "lora/start.h"
#include "train/internal.h"

#include <stdlib.h>

static bool begin_module(const adapter *a, const adapter_module *m, error *err) {
    const checkpoint_tensor *w = m->info->weight;
    float *values = memory_try_aligned(w->elements * sizeof *values);
    if (!values) return error_set(err, "module %s: not enough memory for its weight", m->info->flat);
    dtype_to_f32(values, w->data, w->type, w->elements);
    svd d;
    bool ok = svd_matrix(values, m->info->out, (int64_t)w->elements / m->info->out, m->rank, &d, err);
    if (ok) {
        ok = adapter_start_set(a, m, d.rank, d.u, d.s, d.vt, err);
        svd_free(&d);
    }
    free(values);
    return ok || error_prefix(err, "--init pissa: module %s", m->info->flat);
}

bool train_pissa_begin(const adapter *a, error *err) {
    for (int i = 0; i < a->module_count; i++)
        if (a->modules[i].start[0] && !begin_module(a, &a->modules[i], err)) return false;
    return true;
}
