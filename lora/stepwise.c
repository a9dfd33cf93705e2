#include "lora/stepwise.h"

#include "base/memory.h"
#include "base/random.h"
#include "lora/parts.h"

#include <math.h>
#include <stdlib.h>

enum { GATE = 4, KEY = 2 };

/* Streams of a module's dropouts: four times its number and one of these. */
enum { DROP_ELEMENTS, DROP_RANKS, DROP_MODULE, DROP_STREAMS = 4 };

static int64_t stream_of(const adapter *a, const adapter_module *m, int which) { return (m - a->modules) * DROP_STREAMS + which; }

static void make_key(uint64_t seed, random_stream stream, uint64_t number, float key[KEY]) {
    uint64_t bits = random_bits(seed, stream, number);
    key[0] = (float)(bits >> 40), key[1] = (float)(bits >> 16 & 0xffffff);
}

/* ---- Which weights an update trains ---- */

static bool has_blocks(const adapter *a, const adapter_module *m) { return a->stepwise.block_size > 0 && m->kind == &adapter_kind_lora; }
static bool may_be_left_out(const adapter *a, const adapter_module *m) { return a->stepwise.module_dropout > 0 && !m->kind->apply_norm; }

bool adapter_is_gated(const adapter *a) { return a->stepwise.block_size > 0 || a->stepwise.module_dropout > 0; }

/* LoRA's ranks are the rows of its first factor and the columns of its second. */
update_gate adapter_gate(const adapter *a, const adapter_module *m, const adapter_tensor *x, tensor *gates) {
    update_gate g = {.gates = gates, .index = m - a->modules, .inner = tensor_count(x->value), .ranks = 1};
    if (!has_blocks(a, m)) return g;
    g.inner = x == &m->tensors[0] ? tensor_columns(x->value) : 1;
    g.ranks = m->rank;
    return g;
}

static int draw_block(const adapter *a, const adapter_module *m, int64_t update) {
    int64_t blocks = m->rank / a->stepwise.block_size;
    return (int)(random_uniform(a->seed, RANDOM_STREAM_BLOCK, (uint64_t)update) * (double)blocks);
}

void adapter_window(const adapter *a, const adapter_module *m, int64_t update, int *begin, int *end) {
    float key[KEY];
    *begin = has_blocks(a, m) ? draw_block(a, m, update) * a->stepwise.block_size : 0;
    *end = *begin + (has_blocks(a, m) ? a->stepwise.block_size : 1);
    if (!may_be_left_out(a, m)) return;
    make_key(a->seed, RANDOM_STREAM_MODULES, (uint64_t)update, key);
    if (!op_dropout_keeps(key, stream_of(a, m, DROP_MODULE), 0, a->stepwise.module_dropout)) *end = *begin;
}

int adapter_window_count(const adapter *a) {
    int64_t most = 1;
    for (int i = 0; i < a->module_count; i++)
        if (has_blocks(a, &a->modules[i]) && a->modules[i].rank / a->stepwise.block_size > most)
            most = a->modules[i].rank / a->stepwise.block_size;
    return (int)most;
}

/* ---- The inputs ---- */

void adapter_step_begin(adapter *a, tape *t, adapter_step *s) {
    const adapter_stepwise *w = &a->stepwise;
    *s = (adapter_step){.adapter = a};
    if (w->network_dropout > 0 || w->rank_dropout > 0) s->batch_key = tape_input(t, "dropout key", DTYPE_F32, 1, (int64_t[]){KEY});
    if (w->module_dropout > 0) s->update_key = tape_input(t, "module dropout key", DTYPE_F32, 1, (int64_t[]){KEY});
    if (adapter_is_gated(a)) s->gates = tape_input(t, "gates", DTYPE_F32, 2, (int64_t[]){a->module_count, GATE});
    for (int i = 0; i < a->module_count; i++) a->modules[i].step = s;
}

void adapter_step_end(adapter *a) {
    for (int i = 0; i < a->module_count; i++) a->modules[i].step = NULL;
}

void adapter_step_free(adapter_step *s) {
    free(s->prefixes);
    *s = (adapter_step){0};
}

void adapter_step_gate_gradients(const adapter_step *s, tape *t) {
    const adapter *a = s->adapter;
    for (int i = 0; s->gates && i < a->module_count; i++)
        for (int j = 0; j < ADAPTER_MODULE_TENSORS; j++) {
            const adapter_tensor *x = &a->modules[i].tensors[j];
            if (!x->value) continue;
            update_gate gate = adapter_gate(a, &a->modules[i], x, s->gates);
            op_gate_gradient(t, x->value->grad, &gate);
        }
}

static bool write_key(const adapter *a, tensor *to, random_stream stream, uint64_t number, error *err) {
    float key[KEY];
    if (!to) return true;
    make_key(a->seed, stream, number, key);
    return tensor_write(a->device, to, key, err);
}

static bool write_gates(const adapter *a, tensor *to, int64_t update, error *err) {
    if (!to) return true;
    float *gates = memory_new((size_t)a->module_count * GATE, sizeof *gates);
    for (int i = 0; i < a->module_count; i++) {
        int begin, end;
        adapter_window(a, &a->modules[i], update, &begin, &end);
        gates[i * GATE] = (float)begin, gates[i * GATE + 1] = (float)end;
    }
    bool ok = tensor_write(a->device, to, gates, err);
    free(gates);
    return ok;
}

static bool write_prefix(const adapter *a, const struct rank_prefix *p, int64_t update, error *err) {
    int64_t used = draw_block(a, &(adapter_module){.rank = p->rank}, update) * a->stepwise.block_size + a->stepwise.block_size;
    float *factors = memory_new((size_t)p->rank, sizeof *factors);
    for (int64_t i = 0; i < used; i++) factors[i] = (float)sqrt((double)p->rank / (double)used);
    bool ok = tensor_write(a->device, p->factors, factors, err);
    free(factors);
    return ok;
}

bool adapter_step_write(const adapter_step *s, int64_t update, uint64_t batch, error *err) {
    const adapter *a = s->adapter;
    bool ok = write_key(a, s->batch_key, RANDOM_STREAM_DROPOUT, batch, err) &&
              write_key(a, s->update_key, RANDOM_STREAM_MODULES, (uint64_t)update, err) && write_gates(a, s->gates, update, err);
    for (int i = 0; ok && i < s->prefix_count; i++) ok = write_prefix(a, &s->prefixes[i], update, err);
    return ok;
}

/* ---- For kinds ---- */

static tensor *prefix_of(adapter_step *s, tape *t, int64_t rank) {
    for (int i = 0; i < s->prefix_count; i++)
        if (s->prefixes[i].rank == rank) return s->prefixes[i].factors;
    s->prefixes = memory_grow(s->prefixes, (size_t)s->prefix_count + 1, sizeof *s->prefixes);
    tensor *factors = tape_input(t, "ranks in use", DTYPE_F32, 1, &rank);
    s->prefixes[s->prefix_count++] = (struct rank_prefix){rank, factors};
    return factors;
}

static tensor *drop(const adapter_module *m, tape *t, tensor *x, int which, dropout_of of, double rate, bool made_up_for) {
    const adapter_step *s = m->step;
    if (rate <= 0) return x;
    dropout_shape shape = {of, stream_of(s->adapter, m, which), rate, made_up_for ? (float)(1 / (1 - rate)) : 1};
    return op_dropout(t, x, which == DROP_MODULE ? s->update_key : s->batch_key, shape);
}

/* DoRA's modules are left out as a whole (adapter_step_choose). */
static tensor *drop_module(const adapter_module *m, tape *t, tensor *x) {
    bool whole = m->tensors[ADAPTER_MAGNITUDE].value != NULL;
    return whole ? x : drop(m, t, x, DROP_MODULE, DROPOUT_WHOLE, m->step->adapter->stepwise.module_dropout, false);
}

tensor *adapter_step_hidden(const adapter_module *m, tape *t, tensor *h) {
    if (!m->step || !h) return h;
    const adapter *a = m->step->adapter;
    if (has_blocks(a, m)) h = op_scale_columns(t, h, (column_scale){.w = prefix_of(m->step, t, m->rank), .b = 1});
    h = drop(m, t, h, DROP_ELEMENTS, DROPOUT_ELEMENTS, a->stepwise.network_dropout, true);
    h = drop(m, t, h, DROP_RANKS, DROPOUT_IMAGE_COLUMNS, a->stepwise.rank_dropout, true);
    return drop_module(m, t, h);
}

bool adapter_step_drops(const adapter_module *m) {
    if (!m->step) return false;
    const adapter_stepwise *w = &m->step->adapter->stepwise;
    return w->rank_dropout > 0 || (w->module_dropout > 0 && !m->tensors[ADAPTER_MAGNITUDE].value);
}

tensor *adapter_step_add(const adapter_module *m, tape *t, tensor *change, tensor *y) {
    change = drop(m, t, change, DROP_RANKS, DROPOUT_COLUMNS, m->step->adapter->stepwise.rank_dropout, false);
    change = drop_module(m, t, change);
    return y ? op_add(t, change, y) : change;
}

bool adapter_step_skips(const adapter_module *m) { return m->step && m->step->adapter->stepwise.module_dropout > 0; }

tensor *adapter_step_choose(const adapter_module *m, tape *t, tensor *changed, tensor *unchanged) {
    if (!changed || !unchanged) return NULL;
    tensor *change = op_scale_columns(t, changed, (column_scale){.a = 1, .residual = unchanged, .c = -1});
    return op_add(t, drop(m, t, change, DROP_MODULE, DROPOUT_WHOLE, m->step->adapter->stepwise.module_dropout, false), unchanged);
}

/* ---- Max-norm regularisation ---- */

/* ||D||^2 / *scale^2, the cheapest way that the kind has. */
static tensor *square_norm(const adapter_module *m, tape *t, float *scale) {
    tensor *left, *right;
    *scale = (float)fabs(m->scale);
    if (m->kind->square_norm) return m->kind->square_norm(m, t);
    if (m->kind->factors && m->kind->factors(m, t, &left, &right)) return op_product_square_sum(t, left, right);
    *scale = 1;
    return op_square_sum(t, m->kind->difference(m, t));
}

void adapter_limit_norm(const adapter *a, const adapter_module *m, tape *t) {
    float limit = (float)a->stepwise.max_norm, scale;
    if (limit <= 0 || !m->kind->difference) return;
    tensor *sum = square_norm(m, t, &scale), *scalar = m->tensors[ADAPTER_SCALAR].value;
    if (scalar) {
        op_limit_norm(t, scalar, sum, scale, limit, 1);
        return;
    }
    int count = 0;
    for (int i = 0; i < ADAPTER_SCALAR; i++) count += m->tensors[i].value != NULL;
    for (int i = 0; i < ADAPTER_SCALAR; i++) op_limit_norm(t, m->tensors[i].value, sum, scale, limit, 1 / (float)count);
}
