/* How much a module changes. What is added to a weight (LoRA, LoHa, LoKr, full differences, GLoRA's second half) has a Frobenius norm that
   the file alone tells. What multiplies a weight ((IA)^3, OFT, BOFT, GLoRA's first half) is told as the share of the weight that changes,
   as it is to be expected of a weight that has no part in the adapter: |W A|^2 = |W|^2 |A|^2 / columns. */
#include "base/memory.h"
#include "cli/inspection.h"
#include "lora/parts.h"

#include <cblas.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A part as [rows, columns], columns being all dimensions behind the first. */
typedef struct matrix {
    int64_t rows, columns;
    double *values;
} matrix;

static bool matrix_read(matrix *m, const adapter_group *g, const char *part) {
    const adapter_part *p = adapter_group_part(g, part);
    *m = (matrix){0};
    if (!p || p->tensor->elements == 0 || p->tensor->elements > INT32_MAX) return false;
    float *values = adapter_part_read(p, NULL);
    double *wide = values ? malloc(p->tensor->elements * sizeof *wide) : NULL;
    for (size_t i = 0; wide && i < p->tensor->elements; i++) wide[i] = (double)values[i];
    free(values);
    m->rows = p->tensor->rank ? p->tensor->dims[0] : 1;
    m->columns = (int64_t)p->tensor->elements / m->rows;
    m->values = wide;
    return wide != NULL;
}

static double matrix_squares(const matrix *m) {
    double sum = 0;
    for (int64_t i = 0; i < m->rows * m->columns; i++) sum += m->values[i] * m->values[i];
    return sum;
}

/* transposed: X' X, [columns, columns]; else X X', [rows, rows]. */
static double *gram(const matrix *m, bool transposed) {
    int64_t n = transposed ? m->columns : m->rows, k = transposed ? m->rows : m->columns;
    double *out = malloc((size_t)(n * n) * sizeof *out);
    if (out)
        cblas_dgemm(CblasRowMajor, transposed ? CblasTrans : CblasNoTrans, transposed ? CblasNoTrans : CblasTrans, (blasint)n, (blasint)n,
                    (blasint)k, 1, m->values, (blasint)m->columns, m->values, (blasint)m->columns, 0, out, (blasint)n);
    return out;
}

/* |A B|^2 = sum of (A'A) o (B B'), without making the product. a: [n, r], with `a_transposed` [r, n]; b: [r, m]. -1: no room, no fit. */
static double product_squares(const matrix *a, bool a_transposed, const matrix *b) {
    int64_t r = a_transposed ? a->rows : a->columns;
    if (r != b->rows) return -1;
    double *left = gram(a, !a_transposed), *right = gram(b, false), sum = left && right ? 0 : -1;
    for (int64_t i = 0; sum >= 0 && i < r * r; i++) sum += left[i] * right[i];
    free(left);
    free(right);
    return sum < 0 ? -1 : sum;
}

/* Tucker: the sum over taps of |A M B|^2 = (A'A M) o (M B B'). a: [n, r], with `a_transposed` [r, n]; b: [p, in]; mid: [r, p, taps]. */
static double tucker_squares(const matrix *a, bool a_transposed, const matrix *mid, const matrix *b) {
    int64_t r = a_transposed ? a->rows : a->columns, p = b->rows, taps = mid->columns / p;
    if (mid->rows != r || taps * p != mid->columns) return -1;
    double *left = gram(a, !a_transposed), *right = gram(b, false), *m = malloc((size_t)(3 * r * p) * sizeof *m), sum = 0;
    bool room = left && right && m;
    for (int64_t t = 0; room && t < taps; t++) {
        double *x = m + r * p, *y = x + r * p;
        for (int64_t i = 0; i < r * p; i++) m[i] = mid->values[i * taps + t];
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)r, (blasint)p, (blasint)r, 1, left, (blasint)r, m, (blasint)p, 0, x,
                    (blasint)p);
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)r, (blasint)p, (blasint)p, 1, m, (blasint)p, right, (blasint)p, 0,
                    y, (blasint)p);
        sum += cblas_ddot((blasint)(r * p), x, 1, y, 1);
    }
    free(left);
    free(right);
    free(m);
    return room && sum >= 0 ? sum : room ? 0 : -1;
}

/* Up, middle (may be missing) and down by their parts' names. */
static double factors_squares(const adapter_group *g, const char *up, bool up_transposed, const char *middle, const char *down) {
    matrix a, m = {0}, b;
    double squares = -1;
    bool tucker = middle && adapter_group_part(g, middle), ok = matrix_read(&a, g, up);
    ok = matrix_read(&b, g, down) && ok;
    ok = (!tucker || matrix_read(&m, g, middle)) && ok;
    if (ok) squares = tucker ? tucker_squares(&a, up_transposed, &m, &b) : product_squares(&a, false, &b);
    free(a.values);
    free(b.values);
    free(m.values);
    return squares;
}

static double part_squares(const adapter_group *g, const char *part) {
    matrix m;
    double squares = matrix_read(&m, g, part) ? matrix_squares(&m) : -1;
    free(m.values);
    return squares;
}

static double scale_of(const adapter_file *file, const adapter_group *g, int64_t rank) {
    adapter_module m = {0};
    error ignored;
    return part_load_scale(&m, file, g, rank, &ignored) ? m.scale : 1;
}

/* ---- kinds that add ---- */

static double lora_squares(const adapter_group *g) {
    return factors_squares(g, "lora_up.weight", false, "lora_mid.weight", "lora_down.weight");
}

/* Rows a .. a + n of one half of the product, [n, taps, in] of Tucker's factors, else [n, in * taps]. */
static void loha_rows(const matrix *a, const matrix *b, const matrix *t, int64_t row, int64_t n, double *middle, double *out) {
    int64_t r = t->values ? a->rows : a->columns, in = b->columns, taps = t->values ? t->columns / b->rows : 1, p = b->rows;
    for (int64_t k = 0; k < taps; k++) {
        const double *right = b->values;
        if (t->values) { /* [r, p] of this tap times b */
            double *face = middle + r * in;
            for (int64_t i = 0; i < r * p; i++) face[i] = t->values[i * taps + k];
            cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)r, (blasint)in, (blasint)p, 1, face, (blasint)p, b->values,
                        (blasint)in, 0, middle, (blasint)in);
            right = middle;
        }
        cblas_dgemm(CblasRowMajor, t->values ? CblasTrans : CblasNoTrans, CblasNoTrans, (blasint)n, (blasint)in, (blasint)r, 1,
                    t->values ? a->values + row : a->values + row * r, (blasint)a->columns, right, (blasint)in, 0, out + k * in,
                    (blasint)(taps * in));
    }
}

static bool loha_half_fits(const matrix *a, const matrix *b, const matrix *t) {
    if (!t->values) return a->columns == b->rows;
    return t->rows == a->rows && t->columns % b->rows == 0;
}

/* The product of two products, element by element, has no shorter way to its norm that pays at usual ranks: a few rows at a time. */
static double loha_squares(const adapter_group *g) {
    enum { ROWS = 64 };
    static const char *const parts[6] = {"hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2"};
    matrix m[6] = {{0}};
    double sum = -1, *work = NULL;
    bool ok = true;
    for (int i = 0; i < 6; i++) {
        bool optional = i % 3 == 2 && !adapter_group_part(g, parts[i]);
        if (!optional) ok = matrix_read(&m[i], g, parts[i]) && ok;
    }
    ok = ok && loha_half_fits(&m[0], &m[1], &m[2]) && loha_half_fits(&m[3], &m[4], &m[5]) && !m[2].values == !m[5].values;
    int64_t out = m[2].values ? m[0].columns : m[0].rows, taps = ok && m[2].values ? m[2].columns / m[1].rows : 1;
    int64_t width = m[1].columns * taps, rank = m[0].rows > m[3].rows ? m[0].rows : m[3].rows;
    int64_t most_p = m[1].rows > m[4].rows ? m[1].rows : m[4].rows;
    ok = ok && m[4].columns == m[1].columns && (m[2].values ? m[3].columns : m[3].rows) == out;
    if (ok && m[5].values) ok = m[5].columns / m[4].rows == taps;
    int64_t middle = m[2].values ? rank * (m[1].columns + most_p) : 0;
    if (ok) work = malloc((size_t)(2 * ROWS * width + middle) * sizeof *work);
    if (work) sum = 0;
    for (int64_t row = 0; work && row < out; row += ROWS) {
        int64_t n = out - row < ROWS ? out - row : ROWS;
        double *x = work, *y = x + ROWS * width;
        loha_rows(&m[0], &m[1], &m[2], row, n, y + ROWS * width, x);
        loha_rows(&m[3], &m[4], &m[5], row, n, y + ROWS * width, y);
        for (int64_t i = 0; i < n * width; i++) sum += x[i] * y[i] * (x[i] * y[i]);
    }
    free(work);
    for (int i = 0; i < 6; i++) free(m[i].values);
    return sum;
}

/* |kron(A, B)| = |A| |B| */
static double lokr_squares(const adapter_group *g) {
    double first =
        adapter_group_part(g, "lokr_w1") ? part_squares(g, "lokr_w1") : factors_squares(g, "lokr_w1_a", false, NULL, "lokr_w1_b");
    double second = adapter_group_part(g, "lokr_w2")
                        ? part_squares(g, "lokr_w2")
                        : factors_squares(g, "lokr_w2_a", adapter_group_part(g, "lokr_t2") != NULL, "lokr_t2", "lokr_w2_b");
    return first < 0 || second < 0 ? -1 : first * second;
}

/* ---- kinds that multiply ---- */

static double ia3_relative(const adapter_group *g) {
    bool peft = !adapter_group_part(g, "weight");
    matrix m;
    double sum = matrix_read(&m, g, peft ? "ia3_l" : "weight") ? 0 : -1;
    for (int64_t i = 0; sum >= 0 && i < m.rows * m.columns; i++) {
        double w = m.values[i] - (peft ? 1 : 0);
        sum += w * w / (double)(m.rows * m.columns);
    }
    free(m.values);
    return sum;
}

/* R - I = 2 Q (I - Q)^-1 of a skew-symmetric Q, [n, n]: its squares. (I + Q) X = 2 Q gives the transposed, negative. Elimination needs no
   pivots, since the symmetric part of I + Q is I. work: [2 n n]. */
static double cayley_squares(const double *q, int64_t n, double *work) {
    double *a = work, *x = work + n * n, sum = 0;
    for (int64_t i = 0; i < n * n; i++) {
        a[i] = q[i] + (i / n == i % n ? 1 : 0);
        x[i] = 2 * q[i];
    }
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = k + 1; i < n; i++) {
            double f = a[i * n + k] / a[k * n + k];
            for (int64_t j = k; f != 0 && j < n; j++) a[i * n + j] -= f * a[k * n + j];
            for (int64_t j = 0; f != 0 && j < n; j++) x[i * n + j] -= f * x[k * n + j];
        }
    for (int64_t k = n - 1; k >= 0; k--) {
        for (int64_t i = k + 1; i < n; i++)
            for (int64_t j = 0; j < n; j++) x[k * n + j] -= a[k * n + i] * x[i * n + j];
        for (int64_t j = 0; j < n; j++) {
            x[k * n + j] /= a[k * n + k];
            sum += x[k * n + j] * x[k * n + j];
        }
    }
    return sum;
}

/* The generators' blocks made skew-symmetric, within the constraint (formats.md 3.8); then every block's rotation. */
static double blocks_squares(matrix *m, int64_t size, int64_t stages, double constraint) {
    int64_t count = m->rows * m->columns / (size * size), out = count / stages * size;
    double squares = 0, sum = 0, *q = m->values, *work = malloc((size_t)(2 * size * size) * sizeof *work);
    for (int64_t b = 0; b < count; b++, q += size * size)
        for (int64_t i = 0; i < size; i++)
            for (int64_t j = 0; j <= i; j++) {
                double skew = q[i * size + j] - q[j * size + i];
                q[i * size + j] = skew;
                q[j * size + i] = -skew;
                squares += 2 * skew * skew;
            }
    double limit = constraint * (double)out, factor = limit > 0 && squares > limit * limit ? limit / sqrt(squares) : 1;
    for (int64_t i = 0; i < m->rows * m->columns; i++) m->values[i] *= factor;
    for (int64_t b = 0; work && b < count; b++) sum += cayley_squares(m->values + b * size * size, size, work);
    free(work);
    return work ? sum / (double)out : -1;
}

static double scale_relative(const adapter_group *g, const char *part) {
    matrix m;
    double sum = 0;
    if (!matrix_read(&m, g, part)) return 0;
    for (int64_t i = 0; i < m.rows * m.columns; i++) sum += (m.values[i] - 1) * (m.values[i] - 1) / (double)(m.rows * m.columns);
    free(m.values);
    return sum;
}

/* Of PEFT and OneTrainer, on a layer's inputs: the upper triangles of the generators, [blocks, n (n - 1) / 2], or whole matrices,
   [stages, blocks, n, n]. A constraint (coft) is PEFT's configuration's, which is left out here: -1. */
static double input_rotation_relative(const adapter_file *file, const adapter_group *g) {
    const json_t *config = file->config[g->part];
    const adapter_part *triangles = adapter_group_part(g, "oft_R.weight"), *whole = adapter_group_part(g, "boft_R");
    const safetensors_tensor *t = triangles ? triangles->tensor : whole->tensor;
    matrix m;
    if (json_is_true(json_object_get(config, "coft")) || t->rank != (triangles ? 2 : 4) ||
        !matrix_read(&m, g, triangles ? "oft_R.weight" : "boft_R"))
        return -1;
    int64_t n = triangles ? (int64_t)(0.5 + sqrt(0.25 + 2 * (double)m.columns)) : t->dims[3], stages = triangles ? 1 : t->dims[0];
    bool fits = triangles ? n * (n - 1) / 2 == m.columns : t->dims[2] == n;
    int64_t blocks = triangles ? m.rows : m.rows * m.columns / (n * n);
    double sum = fits ? 0 : -1, *q = fits ? memory_new((size_t)(3 * n * n), sizeof *q) : NULL, *work = q + n * n;
    for (int64_t b = 0; fits && b < blocks; b++) {
        const double *values = m.values + b * (triangles ? m.columns : n * n);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = i + 1; j < n; j++) {
                q[i * n + j] = triangles ? *values++ : (values[i * n + j] - values[j * n + i]) / 2;
                q[j * n + i] = -q[i * n + j];
            }
        sum += cayley_squares(q, n, work) / (double)n / (double)(blocks / stages);
    }
    free(q);
    free(m.values);
    return sum < 0 ? sum : sum + scale_relative(g, "boft_s");
}

/* OFT and BOFT. Small turns and scales add up like independent changes. */
static double rotation_relative(const adapter_file *file, const adapter_group *g) {
    if (adapter_group_part(g, "oft_R.weight") || adapter_group_part(g, "boft_R")) return input_rotation_relative(file, g);
    const adapter_part *blocks = adapter_group_part(g, "oft_blocks"), *diagonal = adapter_group_part(g, "oft_diag");
    const adapter_part *part = blocks ? blocks : diagonal;
    matrix m = {0};
    double sum = -1, constraint = 0;
    int rank = part ? part->tensor->rank : 0;
    if (rank < 3 || rank > 4 || part->tensor->dims[rank - 1] != part->tensor->dims[rank - 2]) return -1;
    int64_t size = part->tensor->dims[rank - 1], stages = rank == 4 ? part->tensor->dims[0] : 1;
    if (!matrix_read(&m, g, part->name)) return -1;
    inspection_alpha(g, &constraint);
    if (blocks) {
        sum = blocks_squares(&m, size, stages, constraint);
    } else {
        sum = 0;
        for (int64_t i = 0; i < m.rows * m.columns; i++) {
            double d = m.values[i] - (i % (size * size) / size == i % size ? 1 : 0);
            sum += d * d * (double)size / (double)(m.rows * m.columns);
        }
    }
    free(m.values);
    return sum < 0 ? sum : sum + scale_relative(g, "rescale");
}

/* W (A) + B: the older naming has a1 [r, in], the current one a1 [in, r]; the products are a2 a1, b2 b1 or the other way round. */
static void glora_norm(inspection_norm *n, const adapter_group *g, double scale) {
    const adapter_part *a1 = adapter_group_part(g, "a1.weight");
    bool old = a1 && a1->tensor->rank >= 2 && a1->tensor->dims[0] < a1->tensor->dims[1];
    double a = old ? factors_squares(g, "a2.weight", false, NULL, "a1.weight") : factors_squares(g, "a1.weight", false, NULL, "a2.weight");
    double b = old ? factors_squares(g, "b2.weight", false, NULL, "b1.weight") : factors_squares(g, "b1.weight", false, NULL, "b2.weight");
    if (a < 0 || b < 0) return;
    int64_t in = old ? a1->tensor->dims[1] : a1->tensor->dims[0];
    n->squares = b * scale * scale;
    n->relative = a * scale * scale / (double)in;
}

/* ---- all ---- */

static bool has(const adapter_group *g, const char *part) { return adapter_group_part(g, part) != NULL; }

static bool all_zero(const adapter_group *g, const char *part) { return !has(g, part) || part_squares(g, part) == 0; }

static void norm_by_kind(inspection_norm *n, const adapter_file *file, const adapter_kind *kind, const adapter_group *g) {
    const char *name = kind->name;
    int64_t rank = inspection_rank(kind, g);
    double scale = scale_of(file, g, rank);
    if (!strcmp(name, "lora")) n->squares = lora_squares(g);
    if (!strcmp(name, "loha")) n->squares = loha_squares(g);
    if (!strcmp(name, "lokr")) n->squares = lokr_squares(g);
    if (n->squares >= 0) n->squares *= scale * scale;
    if (!strcmp(name, "full")) n->squares = has(g, "diff") ? part_squares(g, "diff") : part_squares(g, "diff_b");
    if (!strcmp(name, "norm")) n->squares = has(g, "w_norm") ? part_squares(g, "w_norm") : part_squares(g, "b_norm");
    if (!strcmp(name, "ia3")) n->relative = ia3_relative(g);
    if (!strcmp(name, "oft") || !strcmp(name, "boft")) n->relative = rotation_relative(file, g);
    if (!strcmp(name, "glora")) glora_norm(n, g, scale);
}

inspection_norm inspection_module_norm(const adapter_file *file, const adapter_kind *kind, const adapter_group *g) {
    inspection_norm n = {.squares = -1, .relative = -1};
    if (!kind || !kind->load) return n;
    for (int i = 0; i < g->count; i++) {
        const safetensors_tensor *t = g->parts[i].tensor;
        if (safetensors_first_nonfinite(t->data, t->type, t->elements) < t->elements) return n;
    }
    norm_by_kind(&n, file, kind, g);
    bool told = n.squares >= 0 || n.relative >= 0, own_form = has(g, "oft_R.weight") || has(g, "boft_R");
    n.needs_base = has(g, "dora_scale") || n.relative >= 0 || own_form;
    if (!told && !own_form) n.fault = "its parts do not fit together, or one is missing";
    n.dead = told && n.squares <= 0 && n.relative <= 0 && !has(g, "dora_scale") && all_zero(g, "diff_b") && all_zero(g, "b_norm") &&
             all_zero(g, "bias") && all_zero(g, "bias_values");
    if (has(g, "bias") || has(g, "bias_values")) n.squares = -1; /* a residual that the factors do not show */
    return n;
}
