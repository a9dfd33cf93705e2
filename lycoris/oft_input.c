/* OFT and BOFT as PEFT and OneTrainer have them (Qiu et al. 2023, Liu et al. 2024; formats.md 3.8): what is turned is the input of a layer,
   not its output. The rotations R come from few numbers and are computed once, when the file is read.

   OFT: R of antisymmetric Q, stored as its upper triangles; PEFT's configuration says by which formula and constraint, OneTrainer always
   takes the series. PEFT's linear layers and 1x1 convolutions, and OneTrainer's linear layers: W' = W R^T; OneTrainer's convolutions:
   W' = W R, over (channel, row, column) of the kernel.
   BOFT: W' = s * W (M_k ... M_1)^T, each M block-diagonal between two permutations, over the same order.

   A rotation of a larger kernel mixes pixels, which no rotation of the input does: there the difference from the model's own weight is
   made. */
#include "lycoris/rotation.h"

#include "base/memory.h"
#include "lora/parts.h"
#include "lora/peft.h"
#include "lycoris/kinds.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

enum { ROTATIONS /* [stages, blocks, n, n] */, SCALE /* of outputs */, DIFFERENCE /* instead of both */ };

/* ---- Reading: what both share ---- */

/* The difference of a convolution's weight, whose rows are turned by the stages in their order and then multiplied by `scale` (or not). */
static bool put_difference(adapter *a, adapter_module *m, const char *name, const rotation *r, const float *scale, error *err) {
    const module_info *info = m->info;
    int64_t columns = info->in * info->kernel * info->kernel, dims[] = {info->out, info->in, info->kernel, info->kernel};
    size_t count = (size_t)(info->out * columns);
    float *weight = memory_try_aligned(count * sizeof *weight);
    double *row = memory_new(2 * (size_t)columns, sizeof *row);
    bool ok = weight != NULL || error_set(err, "not enough memory for its difference");
    if (ok) dtype_to_f32(weight, info->weight->data, info->weight->type, count);
    for (int64_t o = 0; ok && o < info->out; o++) {
        float *w = weight + o * columns;
        for (int64_t i = 0; i < columns; i++) row[i] = (double)w[i];
        for (int64_t stage = 0; stage < r->stages; stage++) rotation_turn(r, stage, row, row + columns);
        for (int64_t i = 0; i < columns; i++) w[i] = (float)(row[i] * (scale ? (double)scale[o] : 1) - (double)w[i]);
    }
    ok = ok && adapter_put_tensor(a, m, DIFFERENCE, name, 4, dims, ADAPTER_TAPS, weight, err);
    free(row);
    free(weight);
    return ok;
}

static bool put_rotations(adapter *a, adapter_module *m, const char *name, const rotation *r, error *err) {
    int64_t dims[] = {r->stages, r->blocks, r->size, r->size};
    size_t count = (size_t)(r->stages * r->blocks * r->size * r->size);
    float *values = memory_new(count, sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = (float)r->values[i];
    bool ok = adapter_put_tensor(a, m, ROTATIONS, name, 4, dims, ADAPTER_MATRIX, values, err);
    free(values);
    return ok;
}

/* ---- Reading OFT ---- */

typedef struct oft_settings {
    bool peft, exact;
    int terms;
    double limit; /* of the norm of a block's Q, times the square root of the number of blocks stored; 0: none */
} oft_settings;

/* Without a configuration it is OneTrainer's, which has none to write down. */
static bool read_settings(const json_t *config, oft_settings *s, error *err) {
    *s = (oft_settings){.peft = config != NULL, .terms = 5};
    if (!config) return true;
    const json_t *series = json_object_get(config, "use_cayley_neumann"), *terms = json_object_get(config, "num_cayley_neumann_terms");
    s->exact = json_is_false(series);
    if (json_is_integer(terms)) s->terms = (int)json_integer_value(terms);
    if (s->terms < 1 || s->terms > 64) return error_set(err, "PEFT's configuration: num_cayley_neumann_terms is %d", s->terms);
    const json_t *eps = json_object_get(config, "eps");
    if (json_is_true(json_object_get(config, "coft"))) s->limit = json_is_number(eps) ? json_number_value(eps) : 6e-5;
    return true;
}

/* One block: its packed upper triangle to R. work: [2, n, n]. */
static void make_rotation(const oft_settings *s, const float *packed, double factor, double limit, double *r, double *work, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n * (n - 1) / 2; i++) sum += 2 * (double)packed[i] * (double)packed[i];
    if (limit > 0 && sqrt(sum) > limit) factor *= limit / sqrt(sum);
    for (int64_t i = 0; i < n; i++) {
        work[i * n + i] = 0;
        for (int64_t j = i + 1; j < n; j++) {
            work[i * n + j] = factor * (double)*packed++;
            work[j * n + i] = -work[i * n + j];
        }
    }
    if (s->exact)
        rotation_cayley(r, work, n);
    else
        rotation_series(r, work, work + n * n, n, s->terms);
}

/* All blocks from their triangles [stored, n (n - 1) / 2]; one stored block is shared by all. */
static void make_rotations(const oft_settings *s, const float *packed, int64_t stored, double factor, rotation *r) {
    int64_t n = r->size, square = n * n;
    double *work = memory_new(2 * (size_t)square, sizeof *work), limit = s->limit / sqrt((double)stored);
    for (int64_t b = 0; b < r->blocks; b++) {
        double *values = r->values + b * square;
        if (b < stored) make_rotation(s, packed + b * (n * (n - 1) / 2), factor, limit, values, work, n);
        for (int64_t i = 0; b >= stored && i < square; i++) values[i] = r->values[i];
    }
    free(work);
}

static bool oft_recognises(const adapter_group *g) { return adapter_group_part(g, "oft_R.weight") != NULL; }

static bool oft_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    const adapter_part *part = adapter_group_part(g, "oft_R.weight");
    const safetensors_tensor *t = part->tensor;
    int64_t columns = m->info->in * m->info->kernel * m->info->kernel, stored = t->dims[0], elements = t->rank == 2 ? t->dims[1] : 0;
    int64_t n = (int64_t)(0.5 + sqrt(0.25 + 2 * (double)elements));
    oft_settings s;
    if (!read_settings(g->path ? file->config[g->part] : NULL, &s, err)) return false;
    if (elements < 1 || n * (n - 1) / 2 != elements || columns % n || (stored != 1 && stored * n != columns))
        return part_shape_error(m, t, err);
    if (s.peft && m->info->kernel > 1)
        return error_set(err, "is PEFT's OFT on a %dx%d convolution, which PEFT itself computes in two ways (running and merged differ)",
                         m->info->kernel, m->info->kernel);
    float *packed = adapter_part_read(part, err);
    if (!packed) return false;
    rotation r = rotation_new(1, columns / n, n);
    make_rotations(&s, packed, stored, adapter_group_part(g, "oft_R.scaled_oft") ? 0.5 / sqrt((double)(n - 1)) : 1, &r);
    m->scale = 1;
    m->rank = n;
    if (m->info->convolution && !s.peft && m->info->kernel == 1) rotation_transpose(&r);
    bool ok = m->info->kernel > 1 ? put_difference(a, m, t->name, &r, NULL, err) : put_rotations(a, m, t->name, &r, err);
    rotation_free(&r);
    free(packed);
    return ok;
}

/* ---- Reading BOFT ---- */

static bool boft_recognises(const adapter_group *g) { return adapter_group_part(g, "boft_R") || adapter_group_part(g, "boft_s"); }

/* PEFT takes half of the antisymmetric part. A block of a butterfly holds two runs of columns one behind the other; op_rotate takes them
   in turns, so the rows and columns of the matrices are put into that order. */
static void make_butterflies(const float *values, rotation *r) {
    int64_t n = r->size, square = n * n;
    double *q = memory_new((size_t)square, sizeof *q);
    for (int64_t b = 0; b < r->stages * r->blocks; b++, values += square) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                int64_t from = r->stages > 1 ? i % 2 * (n / 2) + i / 2 : i, to = r->stages > 1 ? j % 2 * (n / 2) + j / 2 : j;
                q[i * n + j] = 0.5 * ((double)values[from * n + to] - (double)values[to * n + from]);
            }
        rotation_cayley(r->values + b * square, q, n);
    }
    free(q);
}

static bool boft_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    (void)file;
    const adapter_part *part = adapter_group_part(g, "boft_R"), *outputs = adapter_group_part(g, "boft_s");
    if (!part) return part_missing_error(g, "boft_s", "boft_R", err);
    if (!outputs) return part_missing_error(g, "boft_R", "boft_s", err);
    const safetensors_tensor *t = part->tensor;
    int64_t n = t->rank == 4 ? t->dims[3] : 0, stages = t->dims[0], columns = m->info->in * m->info->kernel * m->info->kernel;
    bool square = n > 1 && t->dims[2] == n && stages > 0 && stages < 31 && t->dims[1] * n == columns;
    if (!square || (stages > 1 && (n % 2 || columns % (n << (stages - 1))))) return part_shape_error(m, t, err);
    if ((int64_t)outputs->tensor->elements != m->info->out) return part_shape_error(m, outputs->tensor, err);
    float *values = adapter_part_read(part, err), *scale = values ? adapter_part_read(outputs, err) : NULL;
    bool ok = scale != NULL;
    if (ok) {
        rotation r = rotation_new(stages, columns / n, n);
        make_butterflies(values, &r);
        m->scale = 1;
        m->rank = n;
        if (m->info->kernel > 1) {
            rotation_transpose(&r);
            ok = put_difference(a, m, t->name, &r, scale, err);
        } else {
            ok = put_rotations(a, m, t->name, &r, err) && part_load(a, m, SCALE, outputs, ADAPTER_VECTOR, err);
        }
        rotation_free(&r);
    }
    free(values);
    free(scale);
    return ok;
}

/* ---- Applying ---- */

/* The input turned, by the last stage first. */
static tensor *turned(const adapter_module *m, tape *t, tensor *x) {
    tensor *r = part_value(m, ROTATIONS);
    for (int64_t stage = r->dim[0]; stage-- > 0;)
        x = op_rotate(t, x, op_take(t, r, stage), r->dim[0] > 1 ? r->dim[2] / 2 << stage : 0, false);
    return x;
}

static tensor *turned_apply(const adapter_module *m, const adapter_chain *c, int level, tensor *x, const layer_addend *add,
                            float multiplier) {
    tape *t = c->tape;
    tensor *difference = part_value(m, DIFFERENCE), *scale = part_value(m, SCALE);
    if (difference) {
        if (adapter_chain_changes(c, level))
            return tape_fail(t, "module %s: this %s on a convolution goes with the model's own weight; put it before the other adapters",
                             c->site->name, m->kind->title);
        if (multiplier != 1) difference = op_scale_columns(t, difference, (column_scale){.a = multiplier});
        return op_conv2d(t, x, difference, NULL, adapter_chain_product(c, level, x, add), NULL, *c->site->conv);
    }
    tensor *moved = turned(m, t, x);
    if (scale) {
        tensor *y = multiplier == 1 ? NULL : adapter_chain_product(c, level, x, &(layer_addend){0});
        return adapter_chain_replace(c, y, adapter_chain_product(c, level, moved, &(layer_addend){0}), scale, add, multiplier);
    }
    if (multiplier != 1) moved = op_scale_columns(t, moved, (column_scale){.a = multiplier, .residual = x, .c = 1 - multiplier});
    return adapter_chain_product(c, level, moved, add);
}

const adapter_kind adapter_kind_oft_input = {
    .name = "oft",
    .title = "OFT of PEFT or OneTrainer",
    .recognises = oft_recognises,
    .parts = (const char *const[]){"oft_R.weight", "oft_R.scaled_oft", NULL},
    .foreign = true,
    .load = oft_load,
    .apply = turned_apply,
};

const adapter_kind adapter_kind_boft_input = {
    .name = "boft",
    .title = "BOFT of PEFT",
    .recognises = boft_recognises,
    .parts = (const char *const[]){"boft_R", "boft_s", NULL},
    .foreign = true,
    .load = boft_load,
    .apply = turned_apply,
};
