#include "train/gates.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GATE = 4 };

struct train_gates {
    const adapter *adapter;
    tensor *input;
    int windows;
    int64_t *counts; /* [modules, windows]: updates that moved them */
};

train_gates *train_gates_create(const adapter *a, tape *t) {
    if (!adapter_is_gated(a)) return NULL;
    train_gates *g = memory_new(1, sizeof *g);
    g->adapter = a;
    g->input = tape_input(t, "gates", DTYPE_F32, 2, (int64_t[]){a->module_count, GATE});
    g->windows = adapter_window_count(a);
    g->counts = memory_new((size_t)(a->module_count * g->windows), sizeof *g->counts);
    return g;
}

void train_gates_free(train_gates *g) {
    if (g) free(g->counts);
    free(g);
}

tensor *train_gates_input(const train_gates *g) { return g->input; }

/* The module's count in that update, or NULL when it is left out. */
static int64_t *count_of(const train_gates *g, int module, int64_t update, int *begin, int *end) {
    adapter_window(g->adapter, &g->adapter->modules[module], update, begin, end);
    return *end > *begin ? &g->counts[module * g->windows + *begin / (*end - *begin)] : NULL;
}

bool train_gates_write(const train_gates *g, int64_t update, float beta1, float beta2, error *err) {
    int modules = g->adapter->module_count;
    float *values = memory_new((size_t)(modules * GATE), sizeof *values);
    for (int i = 0; i < modules; i++) {
        int begin, end;
        const int64_t *count = count_of(g, i, update, &begin, &end);
        double t = count ? (double)(*count + 1) : 1;
        float *gate = values + (ptrdiff_t)i * GATE;
        gate[0] = (float)begin, gate[1] = (float)end;
        gate[2] = (float)(1.0 - pow((double)beta1, t)), gate[3] = (float)(1.0 - pow((double)beta2, t));
    }
    bool ok = tensor_write(g->adapter->device, g->input, values, err);
    free(values);
    return ok;
}

void train_gates_count(train_gates *g, int64_t update) {
    for (int i = 0; i < g->adapter->module_count; i++) {
        int begin, end;
        int64_t *count = count_of(g, i, update, &begin, &end);
        if (count) ++*count;
    }
}

void train_gates_recount(train_gates *g, int64_t updates) {
    memset(g->counts, 0, (size_t)(g->adapter->module_count * g->windows) * sizeof *g->counts);
    for (int64_t update = 0; update < updates; update++) train_gates_count(g, update);
}
