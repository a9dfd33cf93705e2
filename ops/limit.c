/* Max-norm regularisation of adapters (sd-scripts' and LyCORIS' scale_weight_norms): factors shrink when their product has grown too
   large. Runs behind the optimizer, on its tape. All fp32. */
#include "ops/kernel.h"
#include "ops/op.h"

#include <math.h>

enum { I_RANKS, I_OUTPUTS, I_INPUTS, I_TAPS };
enum { I_COUNT };
enum { F_SCALE, F_LIMIT, F_EXPONENT };

static const op GRAM, TOTAL, LIMIT;

tensor *op_total(tape *t, tensor *parts) {
    tensor *sum = tape_temporary(t, DTYPE_F32, 1, (int64_t[]){1});
    tape_append(t, &TOTAL, &parts, 1, &sum, 1)->i[I_COUNT] = tensor_count(parts);
    return sum;
}

/* ||up down||^2 = trace(down^T up^T up down) = sum of the elementwise product of up^T up and down down^T. */
tensor *op_product_square_sum(tape *t, tensor *up, tensor *down) {
    if (!up || !down) return NULL;
    char us[64], ds[64];
    int64_t ranks = tensor_columns(up), taps = down->rank == 3 ? down->dim[0] : 1;
    if (up->rank != 2 || down->rank < 2 || tensor_rows(down) != taps * ranks)
        return tape_fail(t, "norm of factors %s and %s: they do not fit together", tensor_shape_text(up, us), tensor_shape_text(down, ds));
    tensor *products = tape_temporary(t, DTYPE_F32, 2, (int64_t[]){ranks, ranks});
    record *r = tape_append(t, &GRAM, (tensor *[]){up, down}, 2, &products, 1);
    r->i[I_RANKS] = ranks, r->i[I_OUTPUTS] = tensor_rows(up), r->i[I_INPUTS] = tensor_columns(down), r->i[I_TAPS] = taps;
    return op_total(t, products);
}

void op_limit_norm(tape *t, tensor *param, tensor *square_sum, float scale, float limit, float exponent) {
    if (!param || !square_sum) return;
    record *r = tape_append(t, &LIMIT, &square_sum, 1, &param, 1);
    r->i[I_COUNT] = tensor_count(param);
    r->f[F_SCALE] = scale, r->f[F_LIMIT] = limit, r->f[F_EXPONENT] = exponent;
}

/* ---- CPU ---- */

static size_t gram_scratch(const record *r, const device *d) {
    return d->gpu ? 0 : (size_t)(r->i[I_RANKS] * r->i[I_RANKS]) * sizeof(float);
}

static void gram_cpu(const record *r, const device *d) {
    (void)d;
    int64_t n = r->i[I_RANKS], inputs = r->i[I_INPUTS];
    const float *up = r->in[0]->cpu, *down = r->in[1]->cpu;
    float *out = r->out[0]->cpu, *other = r->scratch->cpu;
    blas_gemm(true, false, n, n, r->i[I_OUTPUTS], 1, up, n, up, n, 0, out, n);
    for (int64_t tap = 0; tap < r->i[I_TAPS]; tap++, down += n * inputs)
        blas_gemm(false, true, n, n, inputs, 1, down, inputs, down, inputs, tap ? 1.0f : 0.0f, other, n);
    for (int64_t i = 0; i < n * n; i++) out[i] *= other[i];
}

static void total_cpu(const record *r, const device *d) {
    (void)d;
    const float *x = r->in[0]->cpu;
    double sum = 0;
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) sum += (double)x[i];
    *(float *)r->out[0]->cpu = (float)sum;
}

static void limit_cpu(const record *r, const device *d) {
    (void)d;
    float sum = *(const float *)r->in[0]->cpu, norm = r->f[F_SCALE] * sqrtf(sum > 0 ? sum : 0), *x = r->out[0]->cpu;
    if (!(norm > r->f[F_LIMIT])) return;
    float factor = powf(r->f[F_LIMIT] / norm, r->f[F_EXPONENT]);
    for (int64_t i = 0; i < r->i[I_COUNT]; i++) x[i] *= factor;
}

/* ---- Vulkan ---- */

enum { GRAM_THREADS = 64, TOTAL_THREADS = 256 };

static void gram_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("gram");
    kernel_read(&k, r->in[0]);
    kernel_read(&k, r->in[1]);
    kernel_write(&k, r->out[0]);
    kernel_constant(&k, GRAM_THREADS);
    for (int i = I_RANKS; i <= I_TAPS; i++) kernel_push(&k, r->i[i]);
    kernel_run_groups(&k, rec, r->i[I_RANKS] * r->i[I_RANKS]);
}

static void total_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("sum");
    kernel_read(&k, r->in[0]);
    kernel_write(&k, r->out[0]);
    kernel_constant(&k, TOTAL_THREADS);
    kernel_push(&k, r->i[I_COUNT]);
    kernel_run(&k, rec, 1, 1, 1, 0);
}

static void limit_vulkan(const record *r, gpu_recording *rec) {
    kernel_call k = kernel_named("limit_norm");
    kernel_write(&k, r->out[0]);
    kernel_read(&k, r->in[0]);
    kernel_push(&k, r->i[I_COUNT]);
    for (int i = F_SCALE; i <= F_EXPONENT; i++) kernel_push_float(&k, r->f[i]);
    kernel_run_over(&k, rec, r->i[I_COUNT]);
}

static double gram_flops(const record *r) {
    return 2.0 * (double)(r->i[I_RANKS] * r->i[I_RANKS]) * (double)(r->i[I_OUTPUTS] + r->i[I_TAPS] * r->i[I_INPUTS]);
}

static const op GRAM = {
    .name = "gram", .scratch = gram_scratch, .flops = gram_flops, .run_cpu = gram_cpu, .run_vulkan = gram_vulkan, .in_place = -1};
static const op TOTAL = {.name = "total", .run_cpu = total_cpu, .run_vulkan = total_vulkan, .in_place = -1};
static const op LIMIT = {.name = "limit_norm", .run_cpu = limit_cpu, .run_vulkan = limit_vulkan, .in_place = -1};
const op *const OP_GRAM = &GRAM, *const OP_TOTAL = &TOTAL, *const OP_LIMIT = &LIMIT;
