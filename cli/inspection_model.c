/* Norms of an adapter against the model that it is for: those of every kind, also of kinds whose change depends on the model's weights. */
#include "base/memory.h"
#include "cli/inspection.h"
#include "convert/source.h"
#include "lora/change.h"

#include <stdlib.h>

static double sum_squares(const float *values, size_t count) {
    double sum = 0;
    for (size_t k = 0; values && k < count; k++) sum += (double)values[k] * (double)values[k];
    return sum;
}

/* Of the model's own weight; 0: there is no memory for it. */
static double weight_squares(const module_info *info) {
    enum { PIECE = 4096 };
    float values[PIECE];
    const checkpoint_tensor *w = info->weight;
    size_t count = 1, width = dtype_size(w->type);
    double sum = 0;
    for (int d = 0; d < w->rank; d++) count *= (size_t)w->dims[d];
    for (size_t done = 0; done < count; done += PIECE) {
        size_t n = count - done < PIECE ? count - done : PIECE;
        dtype_to_f32(values, (const char *)w->data + done * width, w->type, n);
        sum += sum_squares(values, n);
    }
    return sum;
}

static bool measure_module(inspection *i, const source *s, int index, double base_squares[INSPECTION_BLOCKS], error *err) {
    const adapter_module *m = &s->adapter->modules[index];
    const adapter_group *g = source_group(s, index);
    change c;
    if (!change_compute(s->adapter, m, s->model, &c, err)) return error_prefix(err, "module %s", m->info->flat);
    inspection_block *b = g ? inspection_block_of(i, g) : NULL;
    if (b) {
        b->modules++;
        b->added++;
        b->squares += c.weight ? sum_squares(c.weight, (size_t)(c.rows * c.columns)) : 0;
        base_squares[b - i->blocks] += weight_squares(m->info);
    }
    change_free(&c);
    return true;
}

void inspection_measure(inspection *i, const source_base *base) {
    source s;
    error err = {""};
    if (!source_open(&s, base, i->file.path, &err)) {
        inspection_problem(i, "does not fit the model: %s", err.text);
        return;
    }
    double base_squares[INSPECTION_BLOCKS] = {0};
    bool ok = true;
    i->block_count = 0;
    for (int k = 0; ok && k < s.adapter->module_count; k++) ok = measure_module(i, &s, k, base_squares, &err);
    for (int b = 0; b < i->block_count; b++) {
        i->blocks[b].multiplied = base_squares[b] > 0 ? i->blocks[b].modules : 0;
        i->blocks[b].relative = base_squares[b] > 0 ? i->blocks[b].squares / base_squares[b] * i->blocks[b].multiplied : 0;
    }
    inspection_sort_blocks(i);
    i->measured = ok;
    if (!ok) inspection_problem(i, "its change in the model cannot be computed: %s", err.text);
    source_close(&s);
}
