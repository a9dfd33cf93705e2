/* LoKr (LyCORIS; Edalati et al. 2022, KronA; formats.md 3.4): D = scale * kron(W1, W2), W1 [l, m], W2 [k, n] or a convolution's
   [k, n, kh, kw]; either may be a product of two matrices of the rank, W2 also Tucker's.

   kron(W1, W2) x never needs the Kronecker product: with the input's channels as m blocks of n, W2 works on every block and W1 on the
   blocks. */
#include "lora/parts.h"
#include "lora/stepwise.h"
#include "lycoris/kinds.h"

enum { W1, W1_A, W1_B, W2, W2_A, W2_B, T2, TENSORS };

static const char *const PARTS[] = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2",    "lokr_w2_a", "lokr_w2_b",
                                    "lokr_t2", "alpha",     "scale",     "dora_scale", NULL};

static bool lokr_recognises(const adapter_group *g) {
    for (int i = 0; i < T2; i++)
        if (adapter_group_part(g, PARTS[i])) return true;
    return false;
}

/* ---- Reading ---- */

static int64_t dim_of(const adapter_part *p, int i) { return p && p->tensor->rank > i ? p->tensor->dims[i] : 0; }

static bool parts_complete(const adapter_part *const parts[TENSORS], error *err) {
    for (int half = W1; half <= W2; half += W2) {
        bool whole = parts[half], a = parts[half + 1], b = parts[half + 2];
        if (whole && (a || b)) return error_set(err, "has %s and also its factors", PARTS[half]);
        if (!whole && !(a && b)) return error_set(err, "has no %s", PARTS[a ? half + 2 : b ? half + 1 : half]);
    }
    if (parts[T2] && !parts[W2_A]) return error_set(err, "has lokr_t2 but no lokr_w2_a");
    return true;
}

static bool shapes_fit(const adapter_module *m, const adapter_part *const parts[TENSORS], error *err) {
    const module_info *info = m->info;
    int64_t l = dim_of(parts[W1] ? parts[W1] : parts[W1_A], 0), columns = dim_of(parts[W1] ? parts[W1] : parts[W1_B], 1);
    const safetensors_tensor *first = (parts[W1] ? parts[W1] : parts[W1_A])->tensor;
    if (l < 1 || columns < 1 || info->out % l || info->in % columns) return part_shape_error(m, first, err);
    int64_t k = info->out / l, n = info->in / columns, r1 = dim_of(parts[W1_B], 0), r2 = dim_of(parts[W2_B], 0);
    int64_t taps = (int64_t)info->kernel * info->kernel;
    const struct {
        int index;
        int64_t rows, columns;
    } expected[] = {{W1, l, columns},
                    {W1_A, l, r1},
                    {W1_B, r1, columns},
                    {W2_A, parts[T2] ? r2 : k, parts[T2] ? k : r2},
                    {W2_B, r2, parts[T2] ? n : n * taps}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const adapter_part *p = parts[expected[i].index];
        if (p && !part_is_matrix(p->tensor, expected[i].rows, expected[i].columns)) return part_shape_error(m, p->tensor, err);
    }
    if (parts[W2] && !(taps > 1 ? part_is_kernel(parts[W2]->tensor, k, n, info->kernel) : part_is_matrix(parts[W2]->tensor, k, n)))
        return part_shape_error(m, parts[W2]->tensor, err);
    if (parts[T2] && (taps == 1 || !part_is_kernel(parts[T2]->tensor, r2, r2, info->kernel)))
        return part_shape_error(m, parts[T2]->tensor, err);
    return true;
}

static adapter_layout layout_of(const adapter_module *m, int index, bool tucker) {
    bool taps = m->info->kernel > 1;
    if (index == W2 || index == T2) return taps ? ADAPTER_TAPS : ADAPTER_MATRIX;
    if (index == W2_B && taps && !tucker) return ADAPTER_FLAT_TAPS;
    return index == W2_A && tucker ? ADAPTER_TRANSPOSED : ADAPTER_MATRIX;
}

static bool lokr_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    const adapter_part *parts[TENSORS];
    for (int i = 0; i < TENSORS; i++) parts[i] = adapter_group_part(g, PARTS[i]);
    if (!parts_complete(parts, err) || !shapes_fit(m, parts, err)) return false;
    /* Without a factored half there is no rank, and the scale is 1; PEFT's, which is another, goes into W1. */
    int64_t rank = dim_of(parts[W2_B] ? parts[W2_B] : parts[W1_B], 0);
    if (!part_load_scale(m, file, g, rank, err)) return false;
    float first = 1;
    if (!rank) first = (float)m->scale, m->scale = m->alpha = 1;
    for (int i = 0; i < TENSORS; i++) {
        float factor = i == W1 ? first : 1;
        if (parts[i] && !part_load_scaled(a, m, i, parts[i], layout_of(m, i, parts[T2] != NULL), factor, err)) return false;
    }
    return true;
}

/* ---- Applying ---- */

/* W1 on blocks; both of its factors where it has any. */
static tensor *mix(const adapter_module *m, tape *t, tensor *x, int64_t blocks, bool blocks_first, tensor *y, float factor) {
    tensor *w = part_factor(m, t, W1);
    if (w) return op_mix(t, x, w, blocks, blocks_first, y, factor);
    tensor *h = op_mix(t, x, part_value(m, W1_B), blocks, blocks_first, NULL, 1);
    return op_mix(t, h, part_factor(m, t, W1_A), part_value(m, W1_B)->dim[0], false, y, factor);
}

/* W2 inside every block of a linear layer. */
static tensor *inner(const adapter_module *m, tape *t, tensor *x, int64_t blocks, tensor *y, float factor) {
    tensor *w = part_value(m, W2);
    if (w) return op_linear_blocks(t, x, w, blocks, y, factor);
    return op_linear_blocks(t, op_linear_blocks(t, x, part_value(m, W2_B), blocks, NULL, 1), part_value(m, W2_A), blocks, y, factor);
}

static tensor *lokr_branch(const adapter_module *m, const adapter_chain *c, tensor *x, tensor *y, float factor) {
    tape *t = c->tape;
    if (y && adapter_step_drops(m)) return adapter_step_add(m, t, lokr_branch(m, c, x, NULL, factor), y);
    tensor *left = part_value(m, W1) ? part_value(m, W1) : part_value(m, W1_A), *right = part_value(m, W1) ? left : part_value(m, W1_B);
    int64_t l = left->dim[0], blocks = right->dim[1];
    float scale = factor * (float)m->scale;
    if (m->info->kernel > 1) {
        tensor *h = op_split_blocks(t, x, blocks), *w = part_value(m, W2);
        h = adapter_chain_factor(c, h, w ? w : part_value(m, W2_B));
        if (part_value(m, T2)) h = adapter_chain_factor(c, h, part_value(m, T2));
        if (!w) h = adapter_chain_factor(c, h, part_value(m, W2_A));
        return mix(m, t, h, blocks, true, y, scale);
    }
    /* The larger factor works where there are fewer blocks. */
    if (l < blocks) return inner(m, t, mix(m, t, x, blocks, false, NULL, 1), l, y, scale);
    return mix(m, t, inner(m, t, x, blocks, NULL, 1), blocks, false, y, scale);
}

static tensor *lokr_difference(const adapter_module *m, tape *t) {
    tensor *w1 = part_value(m, W1) ? part_factor(m, t, W1) : op_matmul(t, part_factor(m, t, W1_A), part_value(m, W1_B), 1, true);
    tensor *w2 = part_value(m, W2), *right = part_value(m, W2_B);
    if (!w2 && part_value(m, T2)) right = op_matmul(t, part_value(m, T2), right, 1, true);
    if (!w2) w2 = op_matmul(t, part_value(m, W2_A), right, 1, true);
    if (!w1 || !w2) return NULL;
    int dim = w2->rank - 2;
    products_shape s = {w1->dim[0], w1->dim[1], w2->dim[dim], tensor_columns(w2), false, false, true, (float)m->scale};
    return op_products(t, w1, w2, s);
}

/* A Kronecker product's norm is the product of the norms. */
static tensor *lokr_square_norm(const adapter_module *m, tape *t) {
    tensor *w1 = part_factor(m, t, W1), *w2 = part_value(m, W2), *right = part_value(m, W2_B);
    if (!w2 && part_value(m, T2)) right = op_matmul(t, part_value(m, T2), right, 1, true);
    tensor *first = w1 ? op_square_sum(t, w1) : op_product_square_sum(t, part_factor(m, t, W1_A), part_value(m, W1_B));
    tensor *second = w2 ? op_square_sum(t, w2) : op_product_square_sum(t, part_value(m, W2_A), right);
    return op_products(t, first, second, (products_shape){1, 1, 1, 1, true, true, true, 1});
}

/* ---- New ---- */

/* `best` stays 1 + dimension, as in LyCORIS. */
void adapter_factorize(int64_t dimension, int64_t factor, int64_t *low, int64_t *high) {
    int64_t m = 1, n = dimension, best = m + n;
    if (factor > 0 && dimension % factor == 0) {
        m = factor, n = dimension / factor;
    } else {
        if (factor < 0) factor = dimension;
        while (m < n) {
            int64_t a = m + 1;
            while (dimension % a) a++;
            int64_t b = dimension / a;
            if (a + b > best || a > factor) break;
            m = a, n = b;
        }
    }
    *low = m < n ? m : n;
    *high = m < n ? n : m;
}

static bool new_matrix(adapter *a, adapter_module *m, int index, int64_t rows, int64_t columns, bool tucker, part_fill fill, uint64_t seed,
                       error *err) {
    return part_new(a, m, index, 2, (int64_t[]){rows, columns}, layout_of(m, index, tucker), fill, seed, err);
}

static bool lokr_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    const module_info *info = m->info;
    int64_t l, k, columns, n, r = m->rank, kernel = info->kernel;
    adapter_factorize(info->out, o->factor ? o->factor : -1, &l, &k);
    adapter_factorize(info->in, o->factor ? o->factor : -1, &columns, &n);
    bool both = o->decompose_both && 2 * r < (l > columns ? l : columns), whole = o->full_matrix || 2 * r >= (k > n ? k : n);
    bool tucker = !whole && o->tucker && kernel > 1;
    part_fill last = o->trained_scalar ? PART_KAIMING : PART_ZEROS;
    /* As files say it: without a rank alpha means nothing, and the scale is 1, rank-stabilised or not. */
    bool absurd = r > ADAPTER_MOST_RANK; /* LyCORIS' users ask for full matrices by such ranks, which fp16 may not hold */
    if (whole && !both) m->alpha = absurd ? 1 : (double)r, m->asked_alpha = 0;
    m->scale = whole && !both ? 1 : m->alpha / (double)r;
    bool ok = both ? new_matrix(a, m, W1_A, l, r, false, PART_KAIMING, o->seed, err) &&
                         new_matrix(a, m, W1_B, r, columns, false, PART_KAIMING, o->seed, err)
                   : new_matrix(a, m, W1, l, columns, false, PART_KAIMING, o->seed, err);
    if (!ok) return false;
    if (whole) {
        int64_t dims[] = {k, n, kernel, kernel};
        return part_new(a, m, W2, kernel > 1 ? 4 : 2, dims, layout_of(m, W2, false), last, o->seed, err);
    }
    int64_t middle[] = {r, r, kernel, kernel};
    return new_matrix(a, m, W2_A, tucker ? r : k, tucker ? k : r, tucker, PART_KAIMING, o->seed, err) &&
           new_matrix(a, m, W2_B, r, tucker ? n : n * kernel * kernel, tucker, last, o->seed, err) &&
           (!tucker || part_new(a, m, T2, 4, middle, ADAPTER_TAPS, PART_KAIMING, o->seed, err));
}

const adapter_kind adapter_kind_lokr = {
    .name = "lokr",
    .title = "LoKr",
    .recognises = lokr_recognises,
    .parts = PARTS,
    .scalar = "alpha",
    .scaled = 1u << W1 | 1u << W1_A,
    .load = lokr_load,
    .branch = lokr_branch,
    .difference = lokr_difference,
    .square_norm = lokr_square_norm,
    .init = lokr_init,
};
