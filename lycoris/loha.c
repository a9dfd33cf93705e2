/* LoHa (Hyeon-Woo et al. 2022, FedPara; LyCORIS; formats.md 3.3): D = scale * (w1_a w1_b) o (w2_a w2_b), element by element.

   The Hadamard product of two matrices of rank r is a matrix of rank r^2, and its factors are cheap to make:
   D = faces(w1_a, w2_a) khatri_rao(w1_b, w2_b). So D x is a LoRA of rank r^2, and the difference is never held. Where r^2 is so large that
   the weight itself is the smaller factor, it is made after all. With Tucker's t1 and t2 (convolutions) the same holds of all three
   factors: the middle becomes the Kronecker product of t1 and t2 per tap. */
#include "lora/parts.h"
#include "lora/stepwise.h"
#include "lycoris/kinds.h"

enum { W1_A, W1_B, W2_A, W2_B, T1, T2 };

static bool loha_recognises(const adapter_group *g) {
    return adapter_group_part(g, "hada_w1_a") || adapter_group_part(g, "hada_w1_b") || adapter_group_part(g, "hada_w2_a") ||
           adapter_group_part(g, "hada_w2_b");
}

static const char *const PARTS[] = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",  "hada_t1",
                                    "hada_t2",   "alpha",     "scale",     "dora_scale", NULL};

static bool half_fits(const adapter_module *m, const adapter_part *a, const adapter_part *b, const adapter_part *t, int64_t rank,
                      error *err) {
    const module_info *info = m->info;
    int64_t taps = (int64_t)info->kernel * info->kernel;
    if (t && (info->kernel == 1 || !part_is_kernel(t->tensor, rank, rank, info->kernel))) return part_shape_error(m, t->tensor, err);
    if (!part_is_matrix(a->tensor, t ? rank : info->out, t ? info->out : rank)) return part_shape_error(m, a->tensor, err);
    if (!part_is_matrix(b->tensor, rank, t ? info->in : info->in * taps) && (t || !part_is_kernel(b->tensor, rank, info->in, info->kernel)))
        return part_shape_error(m, b->tensor, err);
    return true;
}

static bool loha_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    const adapter_part *parts[6];
    for (int i = 0; i < 6; i++) parts[i] = adapter_group_part(g, PARTS[i]);
    for (int i = W1_A; i <= W2_B; i++)
        if (!parts[i]) return error_set(err, "has no %s", PARTS[i]);
    if (!parts[T1] != !parts[T2]) return error_set(err, "has no %s", PARTS[parts[T1] ? T2 : T1]);
    int64_t rank1 = parts[W1_B]->tensor->dims[0], rank2 = parts[W2_B]->tensor->dims[0];
    if (!half_fits(m, parts[W1_A], parts[W1_B], parts[T1], rank1, err) || !half_fits(m, parts[W2_A], parts[W2_B], parts[T2], rank2, err) ||
        !part_load_scale(m, file, g, rank1, err))
        return false;
    for (int i = 0; i < 6; i++) {
        bool is_b = i == W1_B || i == W2_B, is_t = i >= T1;
        /* OneTrainer leaves a convolution's half as [rank, in, kernel, kernel]. */
        adapter_layout taps = parts[i] && parts[i]->tensor->rank == 4 ? ADAPTER_TAPS : ADAPTER_FLAT_TAPS;
        adapter_layout b_layout = m->info->kernel > 1 && !parts[T1] ? taps : ADAPTER_MATRIX;
        adapter_layout layout = is_b ? b_layout : is_t ? ADAPTER_TAPS : parts[T1] ? ADAPTER_TRANSPOSED : ADAPTER_MATRIX;
        if (parts[i] && !part_load(a, m, i, parts[i], layout, err)) return false;
    }
    return true;
}

/* ---- Applying ---- */

/* Rows paired, columns crossed: [o, p] and [o, q] to [o, p * q]. */
static tensor *faces(tape *t, tensor *a, tensor *b, bool factor) {
    products_shape s = {tensor_rows(a), tensor_columns(a), tensor_rows(b), tensor_columns(b), true, false, factor, 1};
    return op_products(t, a, b, s);
}

/* Rows crossed, columns paired: [p, i] and [q, i] to [p * q, i], per tap if there are taps. */
static tensor *khatri_rao(tape *t, tensor *a, tensor *b, bool factor) {
    int dim = a->rank - 2;
    products_shape s = {a->dim[dim], tensor_columns(a), b->dim[dim], tensor_columns(b), false, true, factor, 1};
    return op_products(t, a, b, s);
}

static tensor *kronecker(tape *t, tensor *a, tensor *b, bool factor) {
    products_shape s = {a->dim[1], a->dim[2], b->dim[1], b->dim[2], false, false, factor, 1};
    return op_products(t, a, b, s);
}

/* A product with the factors of rank r1 r2 costs r1 r2 (in + out) a pixel, one with the difference in * out. Convolutions (whose weight has
   more taps than the factors' second half) always use the factors. */
static bool factors_are_smaller(const adapter_module *m) {
    int64_t rank = part_value(m, W1_B)->dim[0] * part_value(m, W2_B)->dim[0];
    return m->info->kernel > 1 || rank * (m->info->in + m->info->out) < m->info->in * m->info->out;
}

static tensor *half(const adapter_module *m, tape *t, int a, int b, int middle) {
    tensor *right = part_value(m, b);
    if (part_value(m, middle)) right = op_matmul(t, part_value(m, middle), right, 1, true);
    return op_matmul(t, part_factor(m, t, a), right, 1, true);
}

static tensor *hadamard(const adapter_module *m, tape *t, bool factor) {
    tensor *first = half(m, t, W1_A, W1_B, T1), *second = half(m, t, W2_A, W2_B, T2);
    if (!first || !second) return NULL;
    int dim = first->rank - 2;
    products_shape s = {first->dim[dim], tensor_columns(first), first->dim[dim], tensor_columns(first), true, true,
                        factor,          (float)m->scale};
    return op_products(t, first, second, s);
}

static tensor *loha_difference(const adapter_module *m, tape *t) { return hadamard(m, t, true); }

/* Ranks up to which two products of the weight with the factors cost less than the six matrices of its size that the difference and its
   gradients take. */
enum { MOST_PRODUCT_RANK = 64 };

static bool loha_factors(const adapter_module *m, tape *t, tensor **left, tensor **right) {
    if (part_value(m, W1_B)->dim[part_value(m, W1_B)->rank - 2] * part_value(m, W2_B)->dim[part_value(m, W2_B)->rank - 2] >
        MOST_PRODUCT_RANK)
        return false;
    *left = faces(t, part_factor(m, t, W1_A), part_value(m, W2_A), true);
    *right = khatri_rao(t, part_value(m, W1_B), part_value(m, W2_B), true);
    if (part_value(m, T1)) *right = op_matmul(t, kronecker(t, part_value(m, T1), part_value(m, T2), true), *right, 1, true);
    return true;
}

static tensor *loha_branch(const adapter_module *m, const adapter_chain *c, tensor *x, tensor *y, float factor) {
    tape *t = c->tape;
    if (y && adapter_step_drops(m)) return adapter_step_add(m, t, loha_branch(m, c, x, NULL, factor), y);
    if (!factors_are_smaller(m)) return op_linear(t, x, hadamard(m, t, false), NULL, y, factor);
    tensor *h = adapter_chain_factor(c, x, khatri_rao(t, part_value(m, W1_B), part_value(m, W2_B), false));
    if (part_value(m, T1)) h = adapter_chain_factor(c, h, kronecker(t, part_value(m, T1), part_value(m, T2), false));
    return op_linear(t, h, faces(t, part_factor(m, t, W1_A), part_value(m, W2_A), false), NULL, y, factor * (float)m->scale);
}

/* ---- New ---- */

/* As LyCORIS: w1_a and t small, w1_b and w2_b normal, w2_a zeros (small too where a scalar begins at 0 instead). */
static bool loha_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    const module_info *info = m->info;
    bool tucker = o->tucker && info->kernel > 1;
    int64_t k = info->kernel, r = m->rank, left[] = {tucker ? r : info->out, tucker ? info->out : r};
    int64_t right[] = {r, tucker ? info->in : info->in * k * k}, middle[] = {r, r, k, k};
    adapter_layout a_layout = tucker ? ADAPTER_TRANSPOSED : ADAPTER_MATRIX,
                   b_layout = k > 1 && !tucker ? ADAPTER_FLAT_TAPS : ADAPTER_MATRIX;
    m->scale = m->alpha / (double)r;
    for (int i = W1_A; i <= W2_B; i++) {
        bool is_b = i == W1_B || i == W2_B;
        part_fill fill = is_b ? PART_NORMAL : i == W1_A || o->trained_scalar ? PART_NORMAL_TENTH : PART_ZEROS;
        if (!part_new(a, m, i, 2, is_b ? right : left, is_b ? b_layout : a_layout, fill, o->seed, err)) return false;
    }
    return !tucker || (part_new(a, m, T1, 4, middle, ADAPTER_TAPS, PART_NORMAL_TENTH, o->seed, err) &&
                       part_new(a, m, T2, 4, middle, ADAPTER_TAPS, PART_NORMAL_TENTH, o->seed, err));
}

const adapter_kind adapter_kind_loha = {
    .name = "loha",
    .title = "LoHa",
    .recognises = loha_recognises,
    .parts = PARTS,
    .scalar = "alpha",
    .scaled = 1u << W1_A,
    .load = loha_load,
    .branch = loha_branch,
    .difference = loha_difference,
    .factors = loha_factors,
    .init = loha_init,
};
