/* Every operation, forward and gradient, over the list of shapes in ops.safetensors (tests/reference/make_op_fixtures.py) against
   PyTorch in float64: on the CPU with every set of kernels it runs, and on lavapipe with fp32 and with fp16 storage. */
#include "graph/plan.h"
#include "ops/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "case_file.h"
#include "poison.h"

/* As in make_op_fixtures.py; PRIOR + stream: the gradient that an input already has. */
enum { X, W, BIAS, RESIDUAL, SHIFT, GAMMA, BETA, Q, K, V, DY, TARGET, ZERO, PRIOR = 100 };

/* How a case is run. PLAIN; PRIOR_GRADIENT: every input already has a gradient to add to; TEMPORARIES: so, and what ops may take over in
   place are temporaries; FORWARD: no gradients, temporaries. */
typedef enum variant { PLAIN, PRIOR_GRADIENT, TEMPORARIES, FORWARD, VARIANTS } variant;

typedef struct leaf {
    tensor *tensor, *prior;
    const char *result; /* its gradient's name in the fixture; NULL: not asked for */
    uint64_t stream;
    float scale, shift;
    bool parameter;
} leaf;

enum { MOST_LEAVES = 24 };

typedef struct trial {
    device *device;
    tape *tape;
    tensor_pool *pool;
    variant variant;
    dtype weight_type; /* DTYPE_COUNT: a trained parameter */
    leaf leaves[MOST_LEAVES];
    int count;
    tensor *weight; /* the trained parameter, and the leaf that says its values */
    leaf weight_leaf;
    float *stored[8]; /* data of constants */
    int stored_count;
    float dy_scale;
} trial;

typedef struct session {
    device *device;
    const char *label;
    double forward, gradient;
    double worst_forward, worst_gradient;
} session;

static case_file fixtures;
static const char *only; /* the only operation to test, from the command line; NULL: all */
static const op *seen[64];
static int seen_count;

static tensor *add_leaf(trial *t, uint64_t stream, dtype type, int rank, const int64_t *dim, float scale, float shift) {
    assert_true(t->count < MOST_LEAVES);
    tensor *x = tape_input(t->tape, "leaf", type, rank, dim);
    t->leaves[t->count++] = (leaf){.tensor = x, .stream = stream, .scale = scale, .shift = shift};
    return x;
}

/* x, or a temporary with the same values. */
static tensor *as_temporary(trial *t, tensor *x) {
    if (t->variant < TEMPORARIES) return x;
    return op_add(t->tape, x, add_leaf(t, ZERO, DTYPE_COUNT, x->rank, x->dim, 0, 0));
}

/* An activation. result: the name of its gradient. */
static tensor *activation_leaf(trial *t, uint64_t stream, const char *result, int rank, const int64_t *dim, float scale, float shift) {
    int index = t->count;
    tensor *in = add_leaf(t, stream, DTYPE_COUNT, rank, dim, scale, shift);
    in->needs_grad = result && t->variant != FORWARD;
    t->leaves[index].result = in->needs_grad ? result : NULL;
    tensor *x = as_temporary(t, in);
    if (!in->needs_grad || t->variant == PLAIN) return x;
    x->grad = as_temporary(t, t->leaves[index].prior = add_leaf(t, PRIOR + stream, DTYPE_COUNT, rank, dim, 1, 0));
    return x;
}

static tensor *vector_constant(trial *t, uint64_t stream, int64_t n, float shift) {
    error err;
    float *values = t->stored[t->stored_count++] = case_values(stream, (size_t)n, 1, shift);
    return tensor_pool_constant(t->pool, "vector", DTYPE_F32, 1, &n, values, &err);
}

/* A small trained fp32 factor. result: the name of its gradient. */
static tensor *factor_leaf(trial *t, uint64_t stream, const char *result, int rank, const int64_t *dim, float scale) {
    error err;
    tensor *x = tensor_pool_parameter(t->pool, "factor", rank, dim, &err);
    leaf *l = &t->leaves[t->count++];
    *l = (leaf){.tensor = x, .stream = stream, .scale = scale, .parameter = true};
    if (t->variant == FORWARD) return x;
    l->result = result;
    x->needs_grad = true;
    x->grad = tensor_pool_parameter(t->pool, "factor gradient", rank, dim, &err);
    return x;
}

static tensor *weight_leaf(trial *t, int rank, const int64_t *dim) {
    error err;
    size_t count = 1;
    for (int i = 0; i < rank; i++) count *= (size_t)dim[i];
    float *values = case_values(W, count, 1, 0);
    if (t->weight_type != DTYPE_COUNT) {
        void *stored = t->stored[t->stored_count++] = memory_new(count, sizeof(float));
        dtype_from_f32(stored, t->weight_type, values, count);
        free(values);
        return tensor_pool_constant(t->pool, "weight", t->weight_type, rank, dim, stored, &err);
    }
    t->weight = tensor_pool_parameter(t->pool, "weight", rank, dim, &err);
    assert_true(tensor_write(t->device, t->weight, values, &err));
    free(values);
    if (t->variant == FORWARD) return t->weight;
    t->weight->needs_grad = true;
    t->weight->grad = tensor_pool_parameter(t->pool, "weight gradient", rank, dim, &err);
    return t->weight;
}

/* ---- one function an operation: its inputs from the case's arguments ---- */

static tensor *make_linear(trial *t, const int64_t *a) {
    int64_t m = a[0], k = a[1], n = a[2];
    tensor *x = activation_leaf(t, X, "dx", 2, (int64_t[]){m, k}, 1, 0), *w = weight_leaf(t, 2, (int64_t[]){n, k});
    tensor *bias = a[3] ? vector_constant(t, BIAS, n, 0) : NULL;
    tensor *residual = a[4] ? activation_leaf(t, RESIDUAL, "dresidual", 2, (int64_t[]){m, n}, 1, 0) : NULL;
    return op_linear(t->tape, x, w, bias, residual, (float)a[5] / 256);
}

static tensor *make_conv2d(trial *t, const int64_t *a) {
    int64_t n = a[0], o = a[4];
    conv_shape shape = {.kernel = (int)a[5], .stride = (int)a[6], .pad_before = (int)a[7], .pad_after = (int)a[8]};
    int64_t oh = (a[1] + a[7] + a[8] - a[5]) / a[6] + 1, ow = (a[2] + a[7] + a[8] - a[5]) / a[6] + 1;
    tensor *x = activation_leaf(t, X, "dx", 4, (int64_t[]){n, a[1], a[2], a[3]}, 1, 0);
    tensor *w = weight_leaf(t, 3, (int64_t[]){a[5] * a[5], o, a[3]}), *bias = a[9] ? vector_constant(t, BIAS, o, 0) : NULL;
    tensor *residual = a[10] ? activation_leaf(t, RESIDUAL, "dresidual", 4, (int64_t[]){n, oh, ow, o}, 1, 0) : NULL;
    tensor *shift = a[11] ? activation_leaf(t, SHIFT, "dshift", 2, (int64_t[]){n, o}, 1, 0) : NULL;
    return op_conv2d(t->tape, x, w, bias, residual, shift, shape);
}

static tensor *make_group_norm(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 4, a, 1, (float)a[6] / 256);
    return op_group_norm(t->tape, x, vector_constant(t, GAMMA, a[3], 1), vector_constant(t, BETA, a[3], 0), (int)a[4], 1e-5f, a[5] != 0);
}

static tensor *make_layer_norm(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 2, a, 1, (float)a[2] / 256);
    return op_layer_norm(t->tape, x, vector_constant(t, GAMMA, a[1], 1), vector_constant(t, BETA, a[1], 0), 1e-5f);
}

/* A norm's gamma or beta: a frozen vector, a trained one, or (computed) a frozen one and half of a trained one. */
static tensor *norm_vector(trial *t, uint64_t stream, uint64_t fixed, const char *result, int64_t n, float shift, bool frozen,
                           bool computed) {
    if (frozen) return vector_constant(t, computed ? fixed : stream, n, shift);
    tensor *trained = factor_leaf(t, stream, result, 1, &n, 1);
    if (computed)
        return op_scale_columns(t->tape, vector_constant(t, fixed, n, shift), (column_scale){.a = 1, .residual = trained, .c = 0.5f});
    t->leaves[t->count - 1].shift = shift;
    return trained;
}

/* frozen: x, gamma, beta, and whether gamma and beta are computed */
static tensor *make_trained_group_norm(trial *t, const int64_t *a) {
    const int64_t *frozen = a + 7;
    tensor *x = activation_leaf(t, X, frozen[0] ? NULL : "dx", 4, a, 1, (float)a[6] / 256);
    tensor *gamma = norm_vector(t, GAMMA, Q, "dgamma", a[3], 1, frozen[1] != 0, frozen[3] != 0);
    tensor *beta = norm_vector(t, BETA, K, "dbeta", a[3], 0, frozen[2] != 0, frozen[3] != 0);
    return op_group_norm(t->tape, x, gamma, beta, (int)a[4], 1e-5f, a[5] != 0);
}

static tensor *make_trained_layer_norm(trial *t, const int64_t *a) {
    const int64_t *frozen = a + 3;
    tensor *x = activation_leaf(t, X, frozen[0] ? NULL : "dx", 2, a, 1, (float)a[2] / 256);
    tensor *gamma = norm_vector(t, GAMMA, Q, "dgamma", a[1], 1, frozen[1] != 0, frozen[3] != 0);
    tensor *beta = norm_vector(t, BETA, K, "dbeta", a[1], 0, frozen[2] != 0, frozen[3] != 0);
    return op_layer_norm(t->tape, x, gamma, beta, 1e-5f);
}

static tensor *make_attention(trial *t, const int64_t *a) {
    int64_t n = a[0], c = a[3] * a[4];
    tensor *q = activation_leaf(t, Q, "dq", 3, (int64_t[]){n, a[1], c}, (float)a[6], 0);
    tensor *k = activation_leaf(t, K, "dk", 3, (int64_t[]){n, a[2], c}, (float)a[6], 0);
    tensor *v = activation_leaf(t, V, "dv", 3, (int64_t[]){n, a[2], c}, (float)a[6], 0);
    return op_attention(t->tape, q, k, v, (int)a[3], a[5] != 0);
}

static tensor *make_attention_self(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 4, (int64_t[]){a[0], a[1], 1, a[2] * a[3]}, 1, 0);
    return op_attention(t->tape, x, x, x, (int)a[2], a[4] != 0);
}

static tensor *make_activation(trial *t, const int64_t *a) {
    return op_activation(t->tape, activation_leaf(t, X, "dx", 1, a + 1, (float)a[2], 0), (activation)a[0]);
}

static tensor *make_geglu(trial *t, const int64_t *a) {
    return op_geglu(t->tape, activation_leaf(t, X, "dx", 2, (int64_t[]){a[0], 2 * a[1]}, (float)a[2], 0));
}

static tensor *make_add(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 1, a, 1, 0);
    return op_add(t->tape, x, activation_leaf(t, RESIDUAL, "dresidual", 1, a, 1, 0));
}

static tensor *make_concat(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 2, (int64_t[]){a[0], a[1]}, 1, 0);
    return op_concat(t->tape, x, activation_leaf(t, RESIDUAL, "dresidual", 2, (int64_t[]){a[0], a[2]}, 1, 0));
}

static tensor *make_upsample(trial *t, const int64_t *a) {
    return op_upsample(t->tape, activation_leaf(t, X, "dx", 4, a, 1, 0), a[4], a[5]);
}

static tensor *make_sum_pixels(trial *t, const int64_t *a) { return op_sum_pixels(t->tape, activation_leaf(t, X, NULL, 3, a, 1, 0)); }

static tensor *make_mse(trial *t, const int64_t *a) {
    t->dy_scale = (float)a[0];
    return op_mse(t->tape, activation_leaf(t, X, "dx", 1, a, 1, 0), add_leaf(t, TARGET, DTYPE_F32, 1, a, 1, 0));
}

static tensor *make_products(trial *t, const int64_t *a) {
    tensor *x = factor_leaf(t, Q, "dq", 3, (int64_t[]){a[0], a[2], a[3]}, 1),
           *y = factor_leaf(t, K, "dk", 3, (int64_t[]){a[1], a[4], a[5]}, 1);
    products_shape s = {a[2], a[3], a[4], a[5], a[6] != 0, a[7] != 0, true, (float)a[8] / 256};
    return op_products(t->tape, x, y, s);
}

static tensor *make_matmul(trial *t, const int64_t *a) {
    tensor *x = factor_leaf(t, Q, "dq", a[0] > 1 ? 3 : 2, a[0] > 1 ? (int64_t[]){a[0], a[2], a[4]} : (int64_t[]){a[2], a[4]}, 1);
    tensor *y = factor_leaf(t, K, "dk", a[1] > 1 ? 3 : 2, a[1] > 1 ? (int64_t[]){a[1], a[4], a[3]} : (int64_t[]){a[4], a[3]}, 1);
    return op_matmul(t->tape, x, y, (float)a[5] / 256, true);
}

static tensor *make_linear_blocks(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 2, (int64_t[]){a[0], a[1] * a[2]}, 1, 0), *w = weight_leaf(t, 2, (int64_t[]){a[3], a[2]});
    tensor *residual = a[4] ? activation_leaf(t, RESIDUAL, "dresidual", 2, (int64_t[]){a[0], a[1] * a[3]}, 1, 0) : NULL;
    return op_linear_blocks(t->tape, x, w, a[1], residual, (float)a[5] / 256);
}

/* Biases are trained in full differences. */
static tensor *make_trained_bias(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 4, a, 1, 0), *bias = factor_leaf(t, BETA, "dbeta", 1, a + 4, 1);
    if (!a[5]) return op_linear(t->tape, x, weight_leaf(t, 2, (int64_t[]){a[4], a[3]}), bias, NULL, 1);
    conv_shape same = {.kernel = 3, .stride = 1, .pad_before = 1, .pad_after = 1};
    return op_conv2d(t->tape, x, weight_leaf(t, 3, (int64_t[]){9, a[4], a[3]}), bias, NULL, NULL, same);
}

static tensor *make_scale(trial *t, const int64_t *a) {
    column_scale s = {.a = (float)a[4] / 256, .b = (float)a[5] / 256, .c = (float)a[7] / 256};
    tensor *x = activation_leaf(t, X, "dx", 3, a, 1, 0);
    if (a[3]) s.w = factor_leaf(t, GAMMA, "dgamma", 1, a + 2, 1);
    if (a[6]) s.residual = activation_leaf(t, RESIDUAL, "dresidual", 3, a, 1, 0);
    if (a[8]) s.bias = factor_leaf(t, BETA, "dbeta", 1, a + 2, 1);
    if (a[9]) s.shift = activation_leaf(t, SHIFT, "dshift", 2, (int64_t[]){a[0], a[2]}, 1, 0);
    return op_scale_columns(t->tape, x, s);
}

static tensor *make_mix(trial *t, const int64_t *a) {
    int64_t n = a[0], m = a[3], l = a[4], k = a[5], before[] = {n * m, a[1], a[2], k}, behind[] = {n, a[1], a[2], m * k};
    tensor *x = activation_leaf(t, X, "dx", 4, a[6] ? before : behind, 1, 0), *w = factor_leaf(t, Q, "dq", 2, (int64_t[]){l, m}, 1);
    tensor *residual = a[7] ? activation_leaf(t, RESIDUAL, "dresidual", 4, (int64_t[]){n, a[1], a[2], l * k}, 1, 0) : NULL;
    return op_mix(t->tape, x, w, m, a[6] != 0, residual, (float)a[8] / 256);
}

static tensor *make_split_blocks(trial *t, const int64_t *a) {
    return op_split_blocks(t->tape, activation_leaf(t, X, "dx", 4, (int64_t[]){a[0], a[1], a[2], a[3] * a[4]}, 1, 0), a[3]);
}

static tensor *make_rotate(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 2, (int64_t[]){a[0], a[1] * a[2]}, 1, 0);
    return op_rotate(t->tape, x, factor_leaf(t, Q, "dq", 3, (int64_t[]){a[1], a[2], a[2]}, 1), a[3], a[4] != 0);
}

static tensor *make_rotate_stages(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 2, (int64_t[]){a[1], a[2] * a[3]}, 1, 0);
    return op_rotate(t->tape, x, factor_leaf(t, Q, "dq", 4, (int64_t[]){a[0], a[2], a[3], a[3]}, 0.5f), a[4], a[5] != 0);
}

static tensor *make_cayley(trial *t, const int64_t *a) {
    return op_cayley(t->tape, factor_leaf(t, Q, "dq", 3, (int64_t[]){a[0], a[1], a[1]}, 0.25f), (float)a[2] / 256);
}

static tensor *make_dora(trial *t, const int64_t *a) {
    error err;
    float *values = case_values(W, (size_t)(a[0] * a[1] * a[2]), 1, 0);
    void *half = t->stored[t->stored_count++] = memory_new((size_t)(a[0] * a[1] * a[2]), sizeof(float));
    dtype_from_f32(half, DTYPE_F16, values, (size_t)(a[0] * a[1] * a[2]));
    free(values);
    tensor *w = tensor_pool_constant(t->pool, "weight", DTYPE_F16, 3, a, half, &err), *d = factor_leaf(t, Q, "dq", 3, a, 0.5f);
    return op_dora(t->tape, w, d, factor_leaf(t, GAMMA, "dgamma", 1, a + (a[3] ? 1 : 2), 1), a[3] != 0);
}

/* The change as a product, with factors that are both trained. */
static tensor *make_dora_factored(trial *t, const int64_t *a) {
    error err;
    const int64_t taps = a[0], out = a[1], in = a[2], rank = a[3], dim[] = {taps, rank, in};
    float *values = case_values(W, (size_t)(taps * out * in), 1, 0);
    void *half = t->stored[t->stored_count++] = memory_new((size_t)(taps * out * in), sizeof(float));
    dtype_from_f32(half, DTYPE_F16, values, (size_t)(taps * out * in));
    free(values);
    tensor *w = tensor_pool_constant(t->pool, "weight", DTYPE_F16, taps > 1 ? 3 : 2, taps > 1 ? a : a + 1, half, &err);
    tensor *left = factor_leaf(t, Q, "dq", 2, (int64_t[]){out, rank}, 0.5f),
           *right = factor_leaf(t, K, "dk", taps > 1 ? 3 : 2, taps > 1 ? dim : dim + 1, 0.5f);
    tensor *magnitude = factor_leaf(t, GAMMA, "dgamma", 1, a + (a[4] ? 1 : 2), 1);
    return op_dora_factored(t->tape, w, left, right, (float)a[5] / 256, magnitude, a[4] != 0);
}

static tensor *make_take(trial *t, const int64_t *a) {
    tensor *x = factor_leaf(t, Q, "dq", 2, a, 1);
    return op_add(t->tape, op_take(t->tape, x, a[2]), op_take(t->tape, x, a[3]));
}

static tensor *make_dropout(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 3, a, 1, 0), *key = add_leaf(t, GAMMA, DTYPE_F32, 1, (int64_t[]){2}, 256, 256);
    dropout_shape s = {.of = (dropout_of)a[3], .stream = a[4], .rate = (double)a[5] / 256, .factor = (float)a[6] / 256};
    return op_dropout(t->tape, x, key, s);
}

static tensor *make_product_square_sum(trial *t, const int64_t *a) {
    tensor *up = factor_leaf(t, Q, NULL, 2, (int64_t[]){a[1], a[2]}, 1),
           *down = factor_leaf(t, K, NULL, 3, (int64_t[]){a[0], a[2], a[3]}, 1);
    return op_product_square_sum(t->tape, up, down);
}

static tensor *make_square_sum(trial *t, const int64_t *a) { return op_square_sum(t->tape, factor_leaf(t, Q, NULL, 1, a, 1)); }

static tensor *make_limit_norm(trial *t, const int64_t *a) {
    tensor *x = factor_leaf(t, Q, NULL, 1, a, 1);
    op_limit_norm(t->tape, x, op_square_sum(t->tape, x), 0.5f, (float)a[1] / 256, (float)a[2] / 256);
    return op_scale_columns(t->tape, x, (column_scale){.a = 1});
}

/* A weight that is computed: a Kronecker product of trained factors, per tap or not. */
static tensor *kronecker(trial *t, int64_t taps, const int64_t *sizes) {
    tensor *x = factor_leaf(t, Q, "dq", 2, sizes, 1), *y = factor_leaf(t, K, "dk", 3, (int64_t[]){taps, sizes[2], sizes[3]}, 1);
    products_shape s = {sizes[0], sizes[1], sizes[2], sizes[3], false, false, false, 0.25f};
    return op_products(t->tape, x, y, s);
}

static tensor *make_computed_linear(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 2, (int64_t[]){a[0], a[2] * a[4]}, 1, 0);
    return op_linear(t->tape, x, kronecker(t, 1, a + 1), NULL, NULL, 0.5f);
}

static tensor *make_computed_conv2d(trial *t, const int64_t *a) {
    tensor *x = activation_leaf(t, X, "dx", 4, (int64_t[]){a[0], a[1], a[2], a[4] * a[6]}, 1, 0);
    conv_shape same = {.kernel = 3, .stride = 1, .pad_before = 1, .pad_after = 1};
    return op_conv2d(t->tape, x, kronecker(t, 9, a + 3), NULL, NULL, NULL, same);
}

static const struct maker {
    const char *name;
    tensor *(*make)(trial *t, const int64_t *args);
    bool weighted;
} MAKERS[] = {
    {"linear", make_linear, true},
    {"conv2d", make_conv2d, true},
    {"group_norm", make_group_norm, false},
    {"layer_norm", make_layer_norm, false},
    {"trained_group_norm", make_trained_group_norm, false},
    {"trained_layer_norm", make_trained_layer_norm, false},
    {"attention", make_attention, false},
    {"attention_self", make_attention_self, false},
    {"activation", make_activation, false},
    {"geglu", make_geglu, false},
    {"add", make_add, false},
    {"concat", make_concat, false},
    {"upsample", make_upsample, false},
    {"sum_pixels", make_sum_pixels, false},
    {"mse", make_mse, false},
    {"products", make_products, false},
    {"matmul", make_matmul, false},
    {"linear_blocks", make_linear_blocks, true},
    {"trained_bias", make_trained_bias, true},
    {"scale", make_scale, false},
    {"mix_blocks", make_mix, false},
    {"split_blocks", make_split_blocks, false},
    {"rotate", make_rotate, false},
    {"rotate_stages", make_rotate_stages, false},
    {"cayley", make_cayley, false},
    {"dora", make_dora, false},
    {"dora_factored", make_dora_factored, false},
    {"take", make_take, false},
    {"dropout", make_dropout, false},
    {"product_square_sum", make_product_square_sum, false},
    {"square_sum", make_square_sum, false},
    {"limit_norm", make_limit_norm, false},
    {"computed_linear", make_computed_linear, false},
    {"computed_conv2d", make_computed_conv2d, false},
};
enum { MAKER_COUNT = sizeof MAKERS / sizeof *MAKERS };

/* ---- running and comparing ---- */

static void note_ops(const tape *t) {
    for (int i = 0; i < tape_length(t); i++) {
        int k = 0;
        while (k < seen_count && seen[k] != tape_record(t, i)->op) k++;
        if (k == seen_count) seen[seen_count++] = tape_record(t, i)->op;
    }
}

static int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

/* Every how many elements of x the fixture has one: `sampled` there. */
static int64_t sample_step(const tensor *x) {
    int64_t step = tensor_count(x) / 256 | 1;
    while (common_divisor(step, tensor_columns(x)) > 1) step += 2;
    return step;
}

/* The fixture's sample of a tensor (see `sampled` there) against the values read back, less the gradient that was there before. */
static double compare(session *s, const tensor *x, const leaf *prior, const char *name) {
    error err;
    size_t count = (size_t)tensor_count(x), samples;
    const float *expected = case_file_need(&fixtures, &samples, NULL, "%s", name);
    size_t step = (size_t)sample_step(x);
    assert_int_equal((count + step - 1) / step, samples);
    float *values = memory_new(count, sizeof *values), *sum = memory_new(samples, sizeof *sum), *before = NULL;
    if (!tensor_read(s->device, x, values, &err)) fail_msg("%s: %s", name, err.text);
    if (prior) before = case_values(PRIOR + prior->stream, count, 1, 0);
    for (size_t i = 0; i < samples; i++) {
        values[i] = values[i * step];
        sum[i] = expected[i] + (prior ? before[i * step] : 0);
    }
    double e = relative_error(values, sum, samples);
    free(values);
    free(sum);
    free(before);
    return e;
}

static void check(session *s, const trial *t, const tensor *x, const leaf *prior, const char *name, const char *result, bool gradient) {
    static const char *const HOW[VARIANTS] = {"plain", "with a gradient before", "with temporaries", "forward only"};
    char key[128];
    snprintf(key, sizeof key, "%s/%s", name, result);
    double e = compare(s, x, prior, key), most = gradient ? s->gradient : s->forward;
    double *worst = gradient ? &s->worst_gradient : &s->worst_forward;
    if (e > *worst) *worst = e;
    if (!(e <= most))
        fail_msg("%s, %s, %s, weights %s: error %g, more than %g", s->label, key, HOW[t->variant],
                 t->weight_type == DTYPE_COUNT ? "trained" : dtype_name(t->weight_type), e, most);
}

static void write_leaf(session *s, const leaf *l, tensor *to, uint64_t stream) {
    error err;
    float *values = case_values(stream, (size_t)tensor_count(to), l->scale, l->shift);
    if (!tensor_write(s->device, to, values, &err)) fail_msg("%s", err.text);
    free(values);
}

static void write_leaves(session *s, trial *t) {
    for (int i = 0; i < t->count; i++) {
        const leaf *l = &t->leaves[i];
        write_leaf(s, l, l->tensor, l->stream);
        if (l->parameter && l->tensor->grad)
            write_leaf(s, &(leaf){.scale = t->variant == PLAIN ? 0 : 1}, l->tensor->grad, PRIOR + l->stream);
    }
    if (t->weight && t->weight->grad) write_leaf(s, &(leaf){.scale = t->variant == PLAIN ? 0 : 1}, t->weight->grad, PRIOR + W);
}

/* Appends the gradient rules in reverse, as tape_backward does for a loss. */
static void append_backward(trial *t, tensor *y) {
    tensor *dy = add_leaf(t, DY, y->type == t->device->activation ? DTYPE_COUNT : y->type, y->rank, y->dim, t->dy_scale, 0);
    y->grad = y->type == t->device->activation ? as_temporary(t, dy) : dy; /* a loss's is fp32 */
    for (int i = tape_length(t->tape) - 1; i >= 0; i--) {
        const record *r = tape_record(t->tape, i);
        if (r->op->backward && r->out[0]->needs_grad && tape_get_grad(r->out[0])) r->op->backward(t->tape, r);
    }
}

static bool has_prior(const trial *t, const leaf *l) { return l->parameter ? t->variant != PLAIN : l->prior != NULL; }

static void check_results(session *s, const trial *t, const tensor *y, const tensor *dy, const char *name) {
    check(s, t, y, NULL, name, "y", false);
    for (int i = 0; i < t->count; i++) {
        const leaf *l = &t->leaves[i];
        if (l->result && l->tensor->grad != dy) check(s, t, l->tensor->grad, has_prior(t, l) ? l : NULL, name, l->result, true);
    }
    static const leaf WEIGHT = {.stream = W};
    if (t->weight && t->weight->grad) check(s, t, t->weight->grad, t->variant == PLAIN ? NULL : &WEIGHT, name, "dw", true);
}

static void run_case(session *s, const struct maker *m, const int64_t *args, const char *name, variant v, dtype weight_type) {
    error err;
    trial t = {.device = s->device, .tape = tape_create(s->device), .pool = tensor_pool_create(s->device), .variant = v, .dy_scale = 1};
    t.weight_type = weight_type;
    tensor *y = m->make(&t, args);
    if (!y) fail_msg("%s, %s: %s", s->label, name, tape_error(t.tape));
    tape_keep(y);
    if (y->needs_grad) append_backward(&t, y);
    const tensor *dy = y->grad;
    for (int i = 0; i < t.count; i++)
        if (!t.leaves[i].parameter) tape_keep(t.leaves[i].tensor->grad);
    note_ops(t.tape);
    plan *p = plan_create(t.tape, &err);
    if (!p) fail_msg("%s, %s: %s", s->label, name, err.text);
    for (int run = 0; run < 2; run++) {
        if (run == 1 && !poison_temporaries(s->device, t.tape, &err)) fail_msg("%s, %s: %s", s->label, name, err.text);
        write_leaves(s, &t);
        if (!plan_run(p, &err)) fail_msg("%s, %s: %s", s->label, name, err.text);
        check_results(s, &t, y, dy, name);
    }
    plan_free(p);
    tensor_pool_free(t.pool);
    for (int i = 0; i < t.stored_count; i++) free(t.stored[i]);
}

static void run_maker(session *s, const struct maker *m) {
    static const dtype STORED[] = {DTYPE_COUNT, DTYPE_F16, DTYPE_F32, DTYPE_BF16};
    int kinds = !m->weighted ? 1 : s->device->gpu ? 2 : 4; /* uploading converts, the CPU takes weights as they are */
    for (int i = 0;; i++) {
        char name[64], key[80];
        size_t count;
        int64_t args[16];
        snprintf(name, sizeof name, "%s/%d", m->name, i);
        snprintf(key, sizeof key, "%s/args", name);
        const float *given = case_file_find(&fixtures, &count, NULL, key);
        if (!given) {
            assert_true(i > 0);
            return;
        }
        for (size_t k = 0; k < count; k++) args[k] = (int64_t)given[k];
        bool large = m->make == make_conv2d && args[0] * args[1] * args[2] * args[3] * args[4] > 2000000; /* takes seconds */
        for (int v = 0; v < (large ? 1 : VARIANTS); v++)
            for (int w = 0; w < (v == PLAIN ? kinds : 1); w++) run_case(s, m, args, name, (variant)v, STORED[w]);
    }
}

/* ---- the optimizer ---- */

#include "optimizer_cases.h"

/* ---- devices ---- */

/* kernels: of the CPU. */
static session open_session(const char *spec, const char *precision, const char *kernels) {
    error err;
    session s = {.device = device_open(spec, precision, 0, &err), .label = strcmp(spec, "cpu") == 0 ? kernels : precision};
    bool half = strcmp(precision, "fp16") == 0;
    s.forward = half ? 3e-3 : 1e-5, s.gradient = half ? 3e-3 : 2e-5;
    if (!s.device)
        print_message("skipped: %s\n", err.text);
    else if (!device_set_kernels(s.device, kernels, &err))
        fail_msg("%s", err.text);
    return s;
}

static void run_all(const char *spec, const char *precision, const char *kernels) {
    session s = open_session(spec, precision, kernels);
    if (!s.device) skip();
    for (int i = 0; i < MAKER_COUNT; i++) {
        if (only && strcmp(only, MAKERS[i].name) != 0) continue;
        s.worst_forward = s.worst_gradient = 0;
        run_maker(&s, &MAKERS[i]);
        print_message("%-8s %-15s forward %.1e  gradient %.1e\n", s.label, MAKERS[i].name, s.worst_forward, s.worst_gradient);
    }
    if (!only || strcmp(only, "optimizer") == 0) {
        check_optimizer(&s, 0);
        check_optimizer(&s, 0.5f);
        check_gated_optimizer(&s);
    }
    device_close(s.device);
}

static void test_cpu(void **state) {
    (void)state;
    run_all("cpu", "fp32", "portable");
    for (int i = 0; op_table()[i] && !only; i++) {
        int k = 0;
        while (k < seen_count && seen[k] != op_table()[i]) k++;
        if (k == seen_count) fail_msg("no case runs the operation %s: add one to make_op_fixtures.py", op_table()[i]->name);
    }
}

static void test_cpu_kernels(void **state) {
    (void)state;
    for (int i = 0; cpu_kernels_at(i); i++) run_all("cpu", "fp32", cpu_kernels_at(i)->name);
}

static void test_vulkan_fp32(void **state) {
    (void)state;
    run_all("llvmpipe", "fp32", "auto");
}

static void test_vulkan_fp16(void **state) {
    (void)state;
    run_all("llvmpipe", "fp16", "auto");
}

/* Shapes that do not fit are refused with a message, and nothing after that is appended. */
static void test_refusals(void **state) {
    (void)state;
    error err;
    device *d = device_open("cpu", "auto", 1, &err);
    for (int i = 0; i < 8; i++) {
        tape *t = tape_create(d);
        tensor *x = tape_input(t, "x", DTYPE_COUNT, 4, (int64_t[]){2, 3, 5, 6}), *w = tape_input(t, "w", DTYPE_COUNT, 2, (int64_t[]){4, 5});
        tensor *k = tape_input(t, "k", DTYPE_COUNT, 3, (int64_t[]){9, 4, 5}), *v = tape_input(t, "v", DTYPE_COUNT, 1, (int64_t[]){6});
        conv_shape same = {.kernel = 3, .stride = 1, .pad_before = 1, .pad_after = 1};
        tensor *y = i == 0   ? op_linear(t, x, w, NULL, NULL, 1)
                    : i == 1 ? op_conv2d(t, x, k, NULL, NULL, NULL, same)
                    : i == 2 ? op_group_norm(t, x, v, v, 4, 1e-5f, false)
                    : i == 3 ? op_layer_norm(t, x, w, v, 1e-5f)
                    : i == 4 ? op_attention(t, x, x, x, 4, false)
                    : i == 5 ? op_concat(t, x, w)
                    : i == 6 ? op_upsample(t, x, 2, 5)
                             : op_add(t, x, w);
        assert_null(y);
        assert_non_null(tape_error(t));
        assert_int_equal(tape_length(t), 0);
        assert_null(op_activation(t, y, ACTIVATION_SILU));
        assert_null(plan_create(t, &err));
        assert_true(strlen(err.text) > 10);
    }
    device_close(d);
}

static void test_validation_is_silent(void **state) {
    (void)state;
    const char *first;
    int count = gpu_validation_messages(&first);
    if (count) fail_msg("%d messages from the validation layer, the first: %s", count, first);
}

int main(int argc, char **argv) {
    error err;
    only = argc > 1 ? argv[1] : NULL;
    if (argc > 2) cmocka_set_test_filter(argv[2]); /* test_ops conv2d test_cpu */
    if (!case_file_open(&fixtures, "ops.safetensors", &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
#ifndef __SANITIZE_ADDRESS__ /* the layer itself leaks */
    setenv("VULORA_VK_VALIDATE", "1", 0);
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu),         cmocka_unit_test(test_cpu_kernels), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_vulkan_fp32), cmocka_unit_test(test_vulkan_fp16), cmocka_unit_test(test_validation_is_silent),
    };
    int failed = cmocka_run_group_tests_name("ops", tests, NULL, NULL);
    case_file_close(&fixtures);
    return failed;
}
