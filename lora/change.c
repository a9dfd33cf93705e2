#include "lora/change.h"

#include "base/memory.h"
#include "graph/plan.h"
#include "lora/dora.h"
#include "lora/residual.h"
#include "lycoris/kinds.h"

#include <cblas.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void change_free(change *c) {
    free(c->weight);
    free(c->bias);
    *c = (change){0};
}

void factors_free(factors *f) {
    free(f->up);
    free(f->down);
    *f = (factors){0};
}

bool change_needs_model(const adapter_module *m) { return m->kind->apply || adapter_module_magnitude(m); }

static float *room_for(int64_t elements, error *err) {
    float *block = memory_try_aligned((size_t)elements * sizeof *block);
    if (!block) error_set(err, "not enough memory for %lld numbers", (long long)elements);
    return block;
}

/* c = factor * a b + beta * c. a: [m, k], b: [k, n], c: [m, n]. */
static void multiply(const float *a, const float *b, float *c, int64_t m, int64_t k, int64_t n, float factor, float beta) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)m, (blasint)n, (blasint)k, factor, a, (blasint)k, b, (blasint)n, beta,
                c, (blasint)n);
}

/* ---- Tensors of the module ---- */

static const adapter_tensor *tensor_of(const adapter_module *m, const char *part) {
    for (int i = 0; m->kind->parts[i] && i < ADAPTER_MODULE_TENSORS; i++)
        if (strcmp(m->kind->parts[i], part) == 0) return m->tensors[i].value ? &m->tensors[i] : NULL;
    return NULL;
}

float *change_tensor(const adapter *a, const adapter_tensor *t, error *err) {
    int64_t n = adapter_tensor_elements(t);
    float *engine = room_for(n, err), *file = room_for(n, err);
    bool ok = engine && file && tensor_read(a->device, t->value, engine, err);
    if (ok) adapter_tensor_to_file(t, engine, file);
    free(engine);
    if (ok) return file;
    free(file);
    return NULL;
}

float *change_part(const adapter *a, const adapter_module *m, const char *part, bool *present, error *err) {
    const adapter_tensor *t = tensor_of(m, part);
    *present = t != NULL;
    return t ? change_tensor(a, t, err) : NULL;
}

static float *part_needed(const adapter *a, const adapter_module *m, const char *part, error *err) {
    bool present;
    float *values = change_part(a, m, part, &present, err);
    if (!present) error_set(err, "has no %s", part);
    return values;
}

/* The model's weight, [out, in, kh, kw]. */
static float *base_weight(const adapter_module *m, error *err) {
    const checkpoint_tensor *w = m->info->weight;
    if (!w || !w->data) {
        error_set(err, "what %s does depends on the weight it changes: give the model with --model",
                  adapter_module_magnitude(m) ? "DoRA" : m->kind->title);
        return NULL;
    }
    float *values = room_for((int64_t)w->elements, err);
    if (values) dtype_to_f32(values, w->data, w->type, w->elements);
    return values;
}

/* ---- Running a little tape ---- */

/* Runs the tape that ends in y and reads y. x: an input and its values, or NULL. */
static float *run_tape(const adapter *a, tape *t, tensor *y, tensor *x, const float *x_values, error *err) {
    if (y) tape_keep(y);
    plan *p = plan_create(t, err);
    if (!p) return NULL;
    float *values = room_for(tensor_count(y), err);
    bool ok = values && (!x || tensor_write(a->device, x, x_values, err)) && plan_run(p, err) && tensor_read(a->device, y, values, err);
    plan_free(p);
    if (ok) return values;
    free(values);
    return NULL;
}

/* [taps, pairs] to [pairs, taps]; frees `engine`. */
static float *taps_last(float *engine, int64_t taps, int64_t pairs, error *err) {
    if (!engine || taps == 1) return engine;
    float *file = room_for(taps * pairs, err);
    for (int64_t k = 0; file && k < taps; k++)
        for (int64_t i = 0; i < pairs; i++) file[i * taps + k] = engine[k * pairs + i];
    free(engine);
    return file;
}

static float *difference_of(const adapter *a, const adapter_module *m, error *err) {
    const module_info *info = m->info;
    tape *t = tape_create(a->device);
    float *engine = run_tape(a, t, adapter_module_difference(m, t), NULL, NULL, err);
    return taps_last(engine, (int64_t)info->kernel * info->kernel, info->out * info->in, err);
}

/* A kind's apply on a layer of its own, which gives the columns of the changed weight. Of a kind that works on outputs the layer is the
   identity and its inputs are the weight's columns, so convolutions are matrices too; else the layer has the weight, and its inputs are
   the identity. */
static float *through_layer(const adapter *a, const adapter_module *m, const float *weight, bool outputs, error *err) {
    int64_t rows = m->info->out, columns = m->info->in * m->info->kernel * m->info->kernel, side = outputs ? rows : columns;
    float *identity = room_for(side * side, err), *turned = room_for(rows * columns, err), *y = NULL;
    tensor_pool *pool = tensor_pool_create(a->device);
    tensor *layer = NULL;
    if (identity && turned) {
        memset(identity, 0, (size_t)(side * side) * sizeof *identity);
        for (int64_t i = 0; i < side; i++) identity[i * side + i] = 1;
        for (int64_t o = 0; o < rows; o++)
            for (int64_t i = 0; i < columns; i++) turned[i * rows + o] = weight[o * columns + i];
        layer = tensor_pool_constant(pool, m->info->flat, DTYPE_F32, 2, (int64_t[]){rows, side}, outputs ? identity : weight, err);
    }
    if (layer) {
        tape *t = tape_create(a->device);
        tensor *x = tape_input(t, "columns", DTYPE_F32, 2, (int64_t[]){columns, side});
        adapter_site site = {.part = m->info->part, .name = m->info->name, .weight = layer};
        adapter_chain chain = {.tape = t, .site = &site};
        y = run_tape(a, t, m->kind->apply(m, &chain, 0, x, &(layer_addend){0}, 1), x, outputs ? turned : identity, err);
    }
    for (int64_t o = 0; y && o < rows; o++)
        for (int64_t i = 0; i < columns; i++) turned[o * columns + i] = y[i * rows + o] - weight[o * columns + i];
    free(identity);
    tensor_pool_free(pool);
    if (!y) free(turned);
    free(y);
    return y ? turned : NULL;
}

/* ---- Kinds that read the weight ---- */

static bool ia3_change(const adapter *a, const adapter_module *m, float *weight, error *err) {
    const module_info *info = m->info;
    int64_t taps = (int64_t)info->kernel * info->kernel;
    float *factor = change_tensor(a, &m->tensors[0], err);
    for (int64_t o = 0; factor && o < info->out; o++)
        for (int64_t i = 0; i < info->in; i++)
            for (int64_t k = 0; k < taps; k++) weight[(o * info->in + i) * taps + k] *= factor[m->alpha != 0 ? i : o];
    free(factor);
    return factor != NULL;
}

/* PEFT's (IA)^3 scales a layer's output with its bias. */
static bool ia3_bias(const adapter *a, const adapter_module *m, const checkpoint *model, float **bias, error *err) {
    char *name = memory_format("%s.bias", m->info->name);
    const checkpoint_tensor *t = model ? checkpoint_find(model, m->info->part, name) : NULL;
    free(name);
    if (!t) return error_set(err, "what it does depends on the layer's bias: give the model with --model");
    float *factor = change_tensor(a, &m->tensors[0], err);
    *bias = factor ? room_for(m->info->out, err) : NULL;
    if (*bias) dtype_to_f32(*bias, t->data, t->type, t->elements);
    for (int64_t o = 0; *bias && o < m->info->out; o++) (*bias)[o] *= factor[o];
    free(factor);
    return *bias != NULL;
}

/* scale * (W a + b); the convolution's W tap by tap. */
static bool glora_change(const adapter *a, const adapter_module *m, float *weight, error *err) {
    const module_info *info = m->info;
    int64_t out = info->out, in = info->in, taps = (int64_t)info->kernel * info->kernel, r = m->rank;
    const adapter_tensor *b_down = tensor_of(m, "b1.weight");
    int64_t rb = b_down ? b_down->dims[0] : 0;
    float *ad = part_needed(a, m, "a1.weight", err), *au = ad ? part_needed(a, m, "a2.weight", err) : NULL;
    float *bd = au ? part_needed(a, m, "b1.weight", err) : NULL, *bu = bd ? part_needed(a, m, "b2.weight", err) : NULL;
    float *tap = room_for(out * in, err), *h = room_for(out * r, err), *result = room_for(out * in * taps, err);
    bool ok = bu && tap && h && result;
    if (ok) multiply(bu, bd, result, out, rb, in * taps, (float)m->scale, 0);
    for (int64_t k = 0; ok && k < taps; k++) {
        for (int64_t i = 0; i < out * in; i++) tap[i] = weight[i * taps + k];
        multiply(tap, au, h, out, in, r, 1, 0);
        multiply(h, ad, tap, out, r, in, (float)m->scale, 0);
        for (int64_t i = 0; i < out * in; i++) result[i * taps + k] += tap[i];
    }
    if (ok) memcpy(weight, result, (size_t)(out * in * taps) * sizeof *weight);
    free(ad);
    free(au);
    free(bd);
    free(bu);
    free(tap);
    free(h);
    free(result);
    return ok;
}

/* (W + D) * magnitude / (|W + D| + eps) - W, eps that of ops/dora.c. d: D, becomes the change. */
static bool dora_change(const adapter *a, const adapter_module *m, const float *weight, float *d, error *err) {
    const module_info *info = m->info;
    int64_t taps = (int64_t)info->kernel * info->kernel, count = m->dora_on_output ? info->out : info->in;
    double *squares = memory_new((size_t)count, sizeof *squares);
    float *magnitude = change_tensor(a, &m->tensors[ADAPTER_MAGNITUDE], err);
    for (int pass = 0; magnitude && pass < 2; pass++)
        for (int64_t o = 0; o < info->out; o++)
            for (int64_t i = 0; i < info->in; i++) {
                int64_t line = m->dora_on_output ? o : i;
                for (int64_t e = (o * info->in + i) * taps, end = e + taps; e < end; e++) {
                    double v = (double)weight[e] + (double)d[e];
                    if (pass == 0)
                        squares[line] += v * v;
                    else
                        d[e] = (float)(v * (double)magnitude[line] / (sqrt(squares[line]) + (double)FLT_EPSILON) - (double)weight[e]);
                }
            }
    free(squares);
    free(magnitude);
    return magnitude != NULL;
}

/* ---- Any kind ---- */

/* Of foreign kinds on larger convolutions the reader has made the difference. */
static const adapter_tensor *ready_difference(const adapter_module *m) {
    for (int i = 0; m->kind->foreign && i < ADAPTER_MODULE_TENSORS; i++)
        if (m->tensors[i].value && m->tensors[i].layout == ADAPTER_TAPS) return &m->tensors[i];
    return NULL;
}

/* weight: the model's, becomes the change where that is done in place. */
static float *applied_change(const adapter *a, const adapter_module *m, const checkpoint *model, change *c, float *weight, error *err) {
    const adapter_tensor *ready = ready_difference(m);
    bool ia3 = strcmp(m->kind->name, adapter_kind_ia3.name) == 0, outputs = tensor_of(m, "oft_blocks") || tensor_of(m, "oft_diag");
    float *result = weight;
    if (ready)
        result = change_tensor(a, ready, err);
    else if (ia3)
        result = ia3_change(a, m, weight, err) && (!m->kind->foreign || ia3_bias(a, m, model, &c->bias, err)) ? weight : NULL;
    else if (m->kind == &adapter_kind_glora)
        result = glora_change(a, m, weight, err) ? weight : NULL;
    else
        result = through_layer(a, m, weight, outputs, err);
    if (result != weight) free(weight);
    return result;
}

static bool weight_change(const adapter *a, const adapter_module *m, const checkpoint *model, change *c, error *err) {
    float *weight = change_needs_model(m) ? base_weight(m, err) : NULL;
    if (change_needs_model(m) && !weight) return false;
    if (m->kind->apply) {
        c->weight = applied_change(a, m, model, c, weight, err);
        return c->weight != NULL;
    }
    c->weight = difference_of(a, m, err);
    bool ok = c->weight && (!weight || dora_change(a, m, weight, c->weight, err));
    free(weight);
    return ok;
}

/* Kinds whose tensors are the change itself. */
static bool stored_change(const adapter *a, const adapter_module *m, change *c, const char *weight, const char *bias, error *err) {
    bool has_weight, has_bias;
    c->weight = change_part(a, m, weight, &has_weight, err);
    c->bias = change_part(a, m, bias, &has_bias, err);
    return (!has_weight || c->weight) && (!has_bias || c->bias);
}

bool change_compute(const adapter *a, const adapter_module *m, const checkpoint *model, change *out, error *err) {
    const module_info *info = m->info;
    *out = (change){.rows = info->out, .columns = info->kernel ? info->in * info->kernel * info->kernel : 1};
    bool ok = m->kind == &adapter_kind_full   ? stored_change(a, m, out, "diff", "diff_b", err)
              : m->kind == &adapter_kind_norm ? stored_change(a, m, out, "w_norm", "b_norm", err)
                                              : weight_change(a, m, model, out, err);
    if (!ok) change_free(out);
    return ok;
}

bool change_add(const adapter *a, const adapter_module *m, float multiplier, float *weight, error *err) {
    checkpoint_tensor now = *m->info->weight;
    module_info info = *m->info;
    adapter_module here = *m;
    change d;
    now.type = DTYPE_F32, now.data = weight, now.bytes = now.elements * sizeof *weight;
    info.weight = &now;
    here.info = &info;
    if (!change_compute(a, &here, NULL, &d, err)) return false;
    for (size_t i = 0; d.weight && i < now.elements; i++) weight[i] += multiplier * d.weight[i];
    change_free(&d);
    return true;
}

/* ---- Factors ---- */

bool change_has_factors(const adapter_module *m) {
    if (m->kind == &adapter_kind_glora) return m->info->kernel == 1;
    return m->kind == &adapter_kind_lora && !adapter_module_magnitude(m) && !m->tensors[ADAPTER_RESIDUAL].value;
}

/* mid: [up's rank, down's rank, kh, kw], down: [rank, in]; their product [up's rank, in, kh, kw]. */
static float *mid_down(const adapter *a, const adapter_module *m, const float *down, int64_t *rank, error *err) {
    const adapter_tensor *mid = tensor_of(m, "lora_mid.weight");
    int64_t outer = mid->dims[0], inner = mid->dims[1], taps = mid->dims[2] * mid->dims[3], in = m->info->in;
    float *values = change_tensor(a, mid, err), *result = room_for(outer * in * taps, err);
    for (int64_t n = 0; values && result && n < outer; n++) /* mid[n] is [inner, taps]: transposed with down, [in, taps] */
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)in, (blasint)taps, (blasint)inner, 1, down, (blasint)in,
                    values + n * inner * taps, (blasint)taps, 0, result + n * in * taps, (blasint)taps);
    bool ok = values && result;
    free(values);
    *rank = outer;
    if (ok) return result;
    free(result);
    return NULL;
}

static bool lora_factors(const adapter *a, const adapter_module *m, factors *f, error *err) {
    f->rank = m->rank;
    f->up = part_needed(a, m, "lora_up.weight", err);
    f->down = f->up ? part_needed(a, m, "lora_down.weight", err) : NULL;
    if (f->down && tensor_of(m, "lora_mid.weight")) {
        float *down = f->down;
        f->down = mid_down(a, m, down, &f->rank, err);
        free(down);
    }
    return f->up && f->down;
}

/* up = [W a_up, b_up], down = [a_down; b_down]. */
static bool glora_factors(const adapter *a, const adapter_module *m, factors *f, error *err) {
    int64_t out = m->info->out, in = m->info->in, ra = m->rank, rb = tensor_of(m, "b1.weight")->dims[0];
    f->rank = ra + rb;
    float *weight = base_weight(m, err), *au = weight ? part_needed(a, m, "a2.weight", err) : NULL;
    float *bu = au ? part_needed(a, m, "b2.weight", err) : NULL, *ad = bu ? part_needed(a, m, "a1.weight", err) : NULL;
    float *bd = ad ? part_needed(a, m, "b1.weight", err) : NULL, *h = room_for(out * ra, err);
    f->up = room_for(out * f->rank, err);
    f->down = room_for(f->rank * in, err);
    bool ok = bd && h && f->up && f->down;
    if (ok) multiply(weight, au, h, out, in, ra, 1, 0);
    for (int64_t o = 0; ok && o < out; o++) {
        memcpy(f->up + o * f->rank, h + o * ra, (size_t)ra * sizeof *h);
        memcpy(f->up + o * f->rank + ra, bu + o * rb, (size_t)rb * sizeof *bu);
    }
    if (ok) memcpy(f->down, ad, (size_t)(ra * in) * sizeof *ad);
    if (ok) memcpy(f->down + ra * in, bd, (size_t)(rb * in) * sizeof *bd);
    free(weight);
    free(au);
    free(bu);
    free(ad);
    free(bd);
    free(h);
    return ok;
}

bool change_factors(const adapter *a, const adapter_module *m, factors *out, error *err) {
    *out = (factors){.rows = m->info->out, .columns = m->info->in * m->info->kernel * m->info->kernel, .scale = m->scale};
    bool ok = m->kind == &adapter_kind_glora ? glora_factors(a, m, out, err) : lora_factors(a, m, out, err);
    if (!ok) factors_free(out);
    return ok;
}
