/* DoRA's factors (Liu et al. 2024; formats.md 3.11): magnitude / (|W + D| + eps), the norm taken of every input column over all outputs and
   taps, or of every output row over all inputs and taps. W is frozen, D the adapter's difference; the gradient goes through the norm:

   dD = -df * magnitude / (|V| + eps)^2 * V / |V|, V = W + D; dmagnitude = df / (|V| + eps). */
#include "ops/kernel.h"
#include "ops/op.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { IN_W, IN_D, IN_MAGNITUDE, IN_NORM, IN_GRAD };
enum { I_TAPS, I_OUT, I_IN, I_OUTPUT_AXIS, I_ACCUMULATE_D, I_ACCUMULATE_MAGNITUDE };

/* PyTorch's torch.finfo(float32).eps, as LyCORIS adds it to the norm. */
static const float EPS = FLT_EPSILON;

static const op DORA, DORA_GRAD;

tensor *op_dora(tape *t, tensor *w, tensor *d, tensor *magnitude, bool output_axis) {
    if (!w || !d || !magnitude) return NULL;
    char ws[64], ms[64];
    int64_t in = tensor_columns(w), taps = w->rank == 3 ? w->dim[0] : 1, out = tensor_rows(w) / taps;
    if (tensor_count(d) != tensor_count(w) || tensor_count(magnitude) != (output_axis ? out : in))
        return tape_fail(t, "DoRA: difference or magnitudes %s do not fit weight %s", tensor_shape_text(magnitude, ms),
                         tensor_shape_text(w, ws));
    const int64_t count = output_axis ? out : in;
    tensor *made[] = {tape_temporary(t, DTYPE_F32, 1, &count), tape_temporary(t, DTYPE_F32, 1, &count)};
    record *r = tape_append(t, &DORA, (tensor *[]){w, d, magnitude}, 3, made, 2);
    r->i[I_TAPS] = taps, r->i[I_OUT] = out, r->i[I_IN] = in, r->i[I_OUTPUT_AXIS] = output_axis;
    return made[0];
}

static void backward(tape *t, const record *r) {
    tensor *d = r->in[IN_D], *magnitude = r->in[IN_MAGNITUDE];
    bool accumulate_d = false, accumulate_magnitude = false;
    /* Both are computed together; what nobody asked for is a temporary that dies at once. */
    tensor *sums[] = {d->needs_grad ? grad_sum_begin(t, d, &accumulate_d) : tape_temporary(t, DTYPE_F32, d->rank, d->dim),
                      magnitude->needs_grad ? grad_sum_begin(t, magnitude, &accumulate_magnitude)
                                            : tape_temporary(t, DTYPE_F32, magnitude->rank, magnitude->dim)};
    record *g = tape_append(t, &DORA_GRAD, (tensor *[]){r->in[IN_W], d, magnitude, r->out[1], tape_get_grad(r->out[0])}, 5, sums, 2);
    memcpy(g->i, r->i, sizeof r->i);
    g->i[I_ACCUMULATE_D] = accumulate_d, g->i[I_ACCUMULATE_MAGNITUDE] = accumulate_magnitude;
    if (d->needs_grad) grad_sum_done(t, d, sums[0]);
    if (magnitude->needs_grad) grad_sum_done(t, magnitude, sums[1]);
}

static int64_t axis_count(const record *r) { return r->i[I_OUTPUT_AXIS] ? r->i[I_OUT] : r->i[I_IN]; }

/* ---- CPU ---- */

/* Partial sums are taken over this many parts, whatever the number of threads: results do not depend on it. */
enum { PARTS = 16 };

static int64_t cpu_floats(const record *r) { return PARTS * (r->i[I_IN] + axis_count(r)); }

OP_HOT static void add_squares(const float *w, const float *d, float *sums, int64_t n) {
    for (int64_t j = 0; j < n; j++) sums[j] += (w[j] + d[j]) * (w[j] + d[j]);
}

OP_HOT static float sum_squares(const float *w, const float *d, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += (w[j] + d[j]) * (w[j] + d[j]);
    return sum;
}

static void dora_cpu(const record *r, const device *dev) {
    (void)dev;
    const int64_t in = r->i[I_IN], out = r->i[I_OUT], rows = r->i[I_TAPS] * out, count = axis_count(r);
    const float *d = r->in[IN_D]->cpu, *magnitude = r->in[IN_MAGNITUDE]->cpu;
    float *factor = r->out[0]->cpu, *norm = r->out[1]->cpu, *lines = r->scratch->cpu, *sums = lines + PARTS * in;
    memset(sums, 0, (size_t)(PARTS * count) * sizeof *sums);
#pragma omp parallel for schedule(static) if (rows * in > OP_SMALL)
    for (int part = 0; part < PARTS; part++)
        for (int64_t row = rows * part / PARTS; row < rows * (part + 1) / PARTS; row++) {
            float *line = lines + part * in, *sum = sums + part * count;
            dtype_to_f32(line, cpu_at(r->in[IN_W], row * in), r->in[IN_W]->type, (size_t)in);
            if (r->i[I_OUTPUT_AXIS])
                sum[row % out] += sum_squares(line, d + row * in, in);
            else
                add_squares(line, d + row * in, sum, in);
        }
    for (int64_t j = 0; j < count; j++) {
        double sum = 0;
        for (int part = 0; part < PARTS; part++) sum += (double)sums[part * count + j];
        norm[j] = (float)sqrt(sum);
        factor[j] = magnitude[j] / (norm[j] + EPS);
    }
}

OP_HOT static void grad_row(float *out, const float *w, const float *d, const float *slope, bool per_column, bool accumulate, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        float g = slope[per_column ? j : 0] * (w[j] + d[j]);
        out[j] = accumulate ? out[j] + g : g;
    }
}

static void dora_grad_cpu(const record *r, const device *dev) {
    (void)dev;
    const int64_t in = r->i[I_IN], out = r->i[I_OUT], rows = r->i[I_TAPS] * out, count = axis_count(r);
    const float *d = r->in[IN_D]->cpu, *magnitude = r->in[IN_MAGNITUDE]->cpu, *norm = r->in[IN_NORM]->cpu, *df = r->in[IN_GRAD]->cpu;
    float *dd = r->out[0]->cpu, *dm = r->out[1]->cpu, *lines = r->scratch->cpu, *slope = lines + PARTS * in;
    for (int64_t j = 0; j < count; j++) {
        float length = norm[j] + EPS;
        dm[j] = (r->i[I_ACCUMULATE_MAGNITUDE] ? dm[j] : 0) + df[j] / length;
        slope[j] = norm[j] > 0 ? -df[j] * magnitude[j] / (length * length * norm[j]) : 0;
    }
#pragma omp parallel for schedule(static) if (rows * in > OP_SMALL)
    for (int part = 0; part < PARTS; part++)
        for (int64_t row = rows * part / PARTS; row < rows * (part + 1) / PARTS; row++) {
            float *line = lines + part * in;
            dtype_to_f32(line, cpu_at(r->in[IN_W], row * in), r->in[IN_W]->type, (size_t)in);
            grad_row(dd + row * in, line, d + row * in, r->i[I_OUTPUT_AXIS] ? slope + row % out : slope, !r->i[I_OUTPUT_AXIS],
                     r->i[I_ACCUMULATE_D] != 0, in);
        }
}

/* ---- Vulkan ---- */

/* Rows that one workgroup sums for the norms of columns; norms of rows have one part per tap. */
enum { CHUNK = 256 };

static int64_t parts_of(const record *r) { return r->i[I_OUTPUT_AXIS] ? r->i[I_TAPS] : kernel_groups(r->i[I_TAPS] * r->i[I_OUT], CHUNK); }

static size_t scratch(const record *r, const device *d) {
    int64_t floats = !d->gpu ? cpu_floats(r) : r->op == &DORA ? parts_of(r) * axis_count(r) : axis_count(r);
    return (size_t)floats * sizeof(float);
}

static void dora_vulkan(const record *r, gpu_recording *rec) {
    const int64_t *i = r->i;
    kernel_call k = kernel_named("dora_norm");
    kernel_read_typed(&k, r->in[IN_W]);
    kernel_read(&k, r->in[IN_D]);
    kernel_write(&k, r->scratch);
    kernel_constant(&k, i[I_OUTPUT_AXIS]);
    kernel_constant(&k, 1);
    kernel_push(&k, i[I_TAPS] * i[I_OUT]);
    kernel_push(&k, i[I_IN]);
    kernel_push(&k, CHUNK);
    if (i[I_OUTPUT_AXIS])
        kernel_run_groups(&k, rec, i[I_TAPS] * i[I_OUT]);
    else
        kernel_run(&k, rec, kernel_groups(i[I_IN], 16), parts_of(r), 1, 0);

    k = kernel_named("dora_factor");
    kernel_read(&k, r->scratch);
    kernel_read(&k, r->in[IN_MAGNITUDE]);
    kernel_write(&k, r->out[0]);
    kernel_write(&k, r->out[1]);
    kernel_push(&k, axis_count(r));
    kernel_push(&k, parts_of(r));
    kernel_push_float(&k, EPS);
    kernel_run_over(&k, rec, axis_count(r));
}

static void dora_grad_vulkan(const record *r, gpu_recording *rec) {
    const int64_t *i = r->i;
    kernel_call k = kernel_named("dora_slope");
    kernel_read(&k, r->in[IN_MAGNITUDE]);
    kernel_read(&k, r->in[IN_NORM]);
    kernel_read(&k, r->in[IN_GRAD]);
    kernel_write(&k, r->scratch);
    kernel_write(&k, r->out[1]);
    kernel_push(&k, axis_count(r));
    kernel_push(&k, i[I_ACCUMULATE_MAGNITUDE]);
    kernel_push_float(&k, EPS);
    kernel_run_over(&k, rec, axis_count(r));

    k = kernel_named("dora_backward");
    kernel_read_typed(&k, r->in[IN_W]);
    kernel_read(&k, r->in[IN_D]);
    kernel_read(&k, r->scratch);
    kernel_write(&k, r->out[0]);
    kernel_constant(&k, i[I_OUTPUT_AXIS]);
    kernel_push(&k, i[I_TAPS] * i[I_OUT]);
    kernel_push(&k, i[I_IN]);
    kernel_push(&k, i[I_OUT]);
    kernel_push(&k, i[I_ACCUMULATE_D]);
    kernel_run_over(&k, rec, i[I_TAPS] * i[I_OUT] * i[I_IN]);
}

static const op DORA = {
    .name = "dora", .backward = backward, .scratch = scratch, .run_cpu = dora_cpu, .run_vulkan = dora_vulkan, .in_place = -1};
static const op DORA_GRAD = {
    .name = "dora_grad", .scratch = scratch, .run_cpu = dora_grad_cpu, .run_vulkan = dora_grad_vulkan, .in_place = -1};
const op *const OP_DORA = &DORA, *const OP_DORA_GRAD = &DORA_GRAD;
