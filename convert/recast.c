#include "convert/recast.h"

#include "base/memory.h"
#include "lora/dora.h"
#include "lycoris/kinds.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- As it is ---- */

dtype recast_type(const adapter_group *g) {
    for (int i = 0; g && i < g->count; i++)
        if (g->parts[i].tensor->rank > 0) return g->parts[i].tensor->type;
    return DTYPE_F32;
}

static bool is_scalar(const char *part) {
    return strcmp(part, "alpha") == 0 || strcmp(part, "scale") == 0 || strcmp(part, "on_input") == 0;
}

/* Shapes that other programs count on: sd-scripts and diffusers want a LoRA's factors as its layer's weight is; PEFT has its own for
   magnitudes and for (IA)^3. */
static int kohya_shape(const adapter_module *m, const char *part, const safetensors_tensor *t, int64_t dims[4]) {
    const module_info *info = m->info;
    int rank = info->convolution ? 4 : 2;
    bool magnitude = strcmp(part, "dora_scale") == 0, ia3 = m->kind == &adapter_kind_ia3;
    for (int i = 0; i < 4; i++) dims[i] = i < t->rank ? t->dims[i] : 1;
    if (magnitude) {
        dims[0] = m->dora_on_output ? info->out : 1;
        dims[1] = m->dora_on_output ? 1 : info->in;
        dims[2] = dims[3] = 1;
        return rank;
    }
    if (ia3) {
        dims[0] = info->convolution ? 1 : (int64_t)t->elements;
        dims[1] = (int64_t)t->elements;
        dims[2] = dims[3] = 1;
        return info->convolution ? 4 : 1;
    }
    bool matrix = t->rank == 2 || (t->rank == 4 && t->dims[2] == 1 && t->dims[3] == 1);
    return m->kind == &adapter_kind_lora && matrix ? rank : t->rank;
}

static bool copy_part(draft_module *d, const source *s, const adapter_module *m, const adapter_part *p, error *err) {
    int64_t dims[4];
    const char *part = p->name;
    bool multiplier = strcmp(part, "ia3_l") == 0;
    /* PEFT scales a LoKr of whole matrices, kohya's files cannot: the reader has put that into the first one */
    bool scaled = m->kind == &adapter_kind_lokr && m->rank == 0 && strcmp(part, "lokr_w1") == 0, present;
    if (p->tensor->rank > 4) return error_set(err, "tensor %s has %d dimensions", p->tensor->name, p->tensor->rank);
    if (multiplier) part = "weight";
    float *values = scaled ? change_part(s->adapter, m, part, &present, err) : adapter_part_read(p, err);
    if (!values) return false;
    for (size_t i = 0; multiplier && i < p->tensor->elements; i++) values[i] -= 1;
    int rank = kohya_shape(m, part, p->tensor, dims);
    draft_put(d, part, rank, dims, values, p->tensor->type, multiplier || scaled);
    return true;
}

/* webui knows no sparse residuals: they are written in full. */
static bool copy_residual(draft_module *d, const source *s, const adapter_module *m, const adapter_group *g, error *err) {
    const adapter_tensor *t = &m->tensors[ADAPTER_RESIDUAL];
    if (!t->value) return true;
    float *values = change_tensor(s->adapter, t, err);
    if (values) draft_put(d, "bias", t->rank, t->dims, values, recast_type(g), true);
    return values != NULL;
}

/* In the older naming and without a scale, as webui wants it. Of convolutions webui applies none. */
static bool same_glora(draft_module *d, const source *s, const adapter_module *m, const adapter_group *g, error *err) {
    static const char *const parts[] = {"a1.weight", "a2.weight", "b1.weight", "b2.weight"};
    for (int i = 0; i < 4; i++) {
        bool present;
        float *values = change_part(s->adapter, m, parts[i], &present, err);
        if (!values) return false;
        const adapter_tensor *t = &m->tensors[i];
        int64_t dims[4] = {t->dims[0], t->dims[1], 1, 1};
        size_t n = (size_t)adapter_tensor_elements(t);
        for (size_t k = 0; i % 2 && m->scale != 1 && k < n; k++) values[k] = (float)((double)values[k] * m->scale);
        draft_put(d, parts[i], t->rank, dims, values, recast_type(g), true);
    }
    d->alpha = (double)d->rank;
    d->scale = 1;
    return true;
}

bool recast_same(draft *d, const source *s, int index, error *err) {
    const adapter_module *m = &s->adapter->modules[index];
    const adapter_group *g = source_group(s, index);
    const adapter_part *alpha = adapter_group_part(g, m->kind->scalar ? m->kind->scalar : "alpha");
    if (m->kind->foreign)
        return error_set(err, "is an %s, which other spellings do not hold; --kind full --model M turns it into what they do",
                         m->kind->title);
    draft_module *out = draft_add(d, m->info, m->kind);
    out->rank = m->rank;
    out->alpha = m->alpha;
    out->scale = m->scale;
    out->dora_on_output = m->dora_on_output;
    out->alpha_type = draft_writable(alpha ? alpha->tensor->type : recast_type(g));
    /* of a LoKr without a rank alpha means nothing, and is left as it was */
    bool present;
    if (m->kind == &adapter_kind_lokr && m->rank == 0 && !adapter_group_scalar(g, "alpha", &out->alpha, &present, err)) return false;
    if (m->kind == &adapter_kind_glora && m->info->kernel == 1) return same_glora(out, s, m, g, err);
    for (int i = 0; i < g->count; i++)
        if (!is_scalar(g->parts[i].name) && strncmp(g->parts[i].name, "bias", 4) != 0 && !copy_part(out, s, m, &g->parts[i], err))
            return false;
    return copy_residual(out, s, m, g, err);
}

bool recast_cut(draft_module *m, int64_t rank, error *err) {
    draft_tensor *down = draft_find(m, "lora_down.weight"), *up = draft_find(m, "lora_up.weight");
    if (m->kind != &adapter_kind_lora || draft_find(m, "lora_mid.weight") || draft_find(m, "bias"))
        return error_set(err, "is no LoRA of two factors: its ranks are not in an order that could be cut");
    if (rank >= m->rank) return true;
    for (int64_t o = 0; o < up->dims[0]; o++) memmove(up->values + o * rank, up->values + o * m->rank, (size_t)rank * sizeof(float));
    up->elements = up->elements / (size_t)m->rank * (size_t)rank;
    down->elements = down->elements / (size_t)m->rank * (size_t)rank;
    up->dims[1] = down->dims[0] = m->rank = rank;
    m->scale = m->alpha / (double)rank;
    return true;
}

/* ---- Ranks ---- */

bool rank_rule_find(const char *name, rank_rule *out) {
    static const char *const names[] = {"sv_ratio", "sv_cumulative", "sv_fro"};
    for (int i = 0; i < 3; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (rank_rule)(RANK_RATIO + i);
            return true;
        }
    return false;
}

bool rank_wanted(const rank_choice *choice) { return choice->most > 0 || choice->rule != RANK_FIXED; }

int64_t rank_most(const rank_choice *choice, const module_info *info) {
    return info->kernel > 1 && choice->conv_most ? choice->conv_most : choice->most;
}

bool rank_fits(const rank_choice *choice, const module_info *info, int64_t rank) {
    int64_t most = rank_most(choice, info);
    return choice->rule == RANK_FIXED && (most == 0 || rank <= most);
}

/* How many values it takes to reach `part` of them, or of their squares; count + 1: all are too few. */
static int64_t reach(const float *values, int64_t count, double part, bool squares) {
    double so_far = 0;
    for (int64_t i = 0; i < count; i++) {
        so_far += squares ? (double)values[i] * (double)values[i] : (double)values[i];
        if (so_far >= part) return i + 1;
    }
    return count + 1;
}

enum { ZERO_EXPONENT = -20 }; /* of the largest singular value of what counts as no change: about resize_lora's 1e-6 */

/* As resize_lora: the index found is kept within 1 and count - 1, and one more is taken. */
int64_t rank_choose(const rank_choice *choice, int64_t most, const float *values, int64_t count, double norm) {
    double p = choice->parameter, sum = 0;
    int64_t rank = most > 0 && count > most ? most : count, index = 0;
    if (choice->rule == RANK_FIXED) return rank;
    if (count == 0 || !((double)values[0] > ldexp(1, ZERO_EXPONENT))) return 1;
    for (int64_t i = 0; i < count; i++) sum += (double)values[i];
    if (choice->rule == RANK_CUMULATIVE) index = reach(values, count, p * sum, false);
    if (choice->rule == RANK_FROBENIUS) index = reach(values, count, p * p * norm * norm, true);
    if (choice->rule == RANK_RATIO)
        while (index < count && (double)values[index] > (double)values[0] / p) index++;
    if (index > count - 1) index = count - 1;
    if (index < 1) index = 1;
    return index + 1 < rank ? index + 1 : rank;
}

/* How many singular values that takes; 0: all. */
static int64_t values_needed(const rank_choice *choice, int64_t most) {
    if (choice->rule == RANK_FIXED) return most;
    return choice->rule == RANK_CUMULATIVE || most == 0 ? 0 : most + 1;
}

/* ---- LoRA ---- */

/* The first `rank` singular values, their square root on either side. scale: of the whole. */
static bool put_svd(draft *d, const module_info *info, const svd *v, double scale, int64_t rank, dtype type, error *err) {
    float *up = memory_try_aligned((size_t)(v->m * rank) * sizeof *up), *down = memory_try_aligned((size_t)(rank * v->n) * sizeof *down);
    if (!up || !down) {
        free(up);
        free(down);
        return error_set(err, "not enough memory for a LoRA of rank %lld", (long long)rank);
    }
    for (int64_t k = 0; k < rank; k++) {
        double root = sqrt((double)v->s[k] * fabs(scale)), sign = scale < 0 ? -1 : 1;
        for (int64_t o = 0; o < v->m; o++) up[o * rank + k] = (float)((double)v->u[o * v->rank + k] * root * sign);
        for (int64_t i = 0; i < v->n; i++) down[k * v->n + i] = (float)((double)v->vt[k * v->n + i] * root);
    }
    draft_put_lora(d, info, rank, (double)rank, up, down, type);
    return true;
}

static bool finish_svd(draft *d, const module_info *info, svd *v, double scale, const rank_choice *choice, int64_t most, dtype type,
                       recast_loss *loss, error *err) {
    int64_t rank = rank_choose(choice, most, v->s, v->rank, v->norm);
    double cut = v->error * v->norm * v->error * v->norm;
    for (int64_t k = rank; k < v->rank; k++) cut += (double)v->s[k] * (double)v->s[k];
    loss->rank = rank;
    loss->norm = v->norm * fabs(scale);
    loss->error = v->norm > 0 ? sqrt(cut) / v->norm : 0;
    bool ok = put_svd(d, info, v, scale, rank, type, err);
    svd_free(v);
    return ok;
}

bool recast_matrix(draft *d, const module_info *info, const float *weight, const rank_choice *choice, dtype type, recast_loss *loss,
                   error *err) {
    svd v;
    int64_t most = rank_most(choice, info), columns = info->in * info->kernel * info->kernel;
    *loss = (recast_loss){0};
    return svd_matrix(weight, info->out, columns, values_needed(choice, most), &v, err) &&
           finish_svd(d, info, &v, 1, choice, most, type, loss, err);
}

bool recast_factors(draft *d, const module_info *info, const factors *f, const rank_choice *choice, dtype type, recast_loss *loss,
                    error *err) {
    svd v;
    int64_t most = rank_most(choice, info);
    *loss = (recast_loss){.before = f->rank};
    return svd_product(f->up, f->down, f->rows, f->rank, f->columns, values_needed(choice, most), &v, err) &&
           finish_svd(d, info, &v, f->scale, choice, most, type, loss, err);
}

void recast_keep_factors(draft *d, const module_info *info, factors *f, dtype type) {
    draft_put_lora(d, info, f->rank, f->scale * (double)f->rank, f->up, f->down, type);
    *f = (factors){0};
}

/* ---- Full difference ---- */

void recast_full(draft *d, const module_info *info, change *c, dtype type) {
    bool norm = info->kernel == 0;
    draft_module *m = draft_add(d, info, norm ? &adapter_kind_norm : &adapter_kind_full);
    int64_t dims[] = {info->out, info->in, info->kernel, info->kernel};
    if (c->weight) draft_put(m, norm ? "w_norm" : "diff", norm ? 1 : info->convolution ? 4 : 2, dims, c->weight, type, true);
    if (c->bias) draft_put(m, norm ? "b_norm" : "diff_b", 1, dims, c->bias, type, true);
    *c = (change){0};
}
