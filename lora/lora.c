/* LoRA (Hu et al. 2021) on linear layers, and LoCon, the same on convolutions (LyCORIS; formats.md 3.1 and 3.2):
   y += multiplier * alpha / rank * up(down(x)), `down` with the convolution's own kernel, stride and padding, `up` 1x1. With `lora_mid`
   (Tucker) down and up are 1x1 and the kernel is in the middle. */
#include "lora/kind.h"

#include "base/memory.h"
#include "base/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DOWN, UP, MID };

static bool lora_recognises(const adapter_group *g) {
    return adapter_group_part(g, "lora_down.weight") || adapter_group_part(g, "lora_up.weight");
}

/* ---- Shapes ---- */

/* The tensor is [a, b] or [a, b, 1, 1]. */
static bool is_matrix(const safetensors_tensor *t) { return t->rank == 2 || (t->rank == 4 && t->dims[2] == 1 && t->dims[3] == 1); }

static bool is_kernel(const safetensors_tensor *t, int kernel) { return t->rank == 4 && t->dims[2] == kernel && t->dims[3] == kernel; }

static bool shape_error(const adapter_module *m, const safetensors_tensor *t, error *err) {
    char shape[128], weight[128];
    const module_info *info = m->info;
    int64_t dims[4] = {info->out, info->in, info->kernel, info->kernel};
    safetensors_shape_text(shape, sizeof shape, t->rank, t->dims);
    safetensors_shape_text(weight, sizeof weight, info->convolution ? 4 : 2, dims);
    return error_set(err, "%s is %s, but the model's weight there is %s: the adapter was made for another model size", t->name, shape,
                     weight);
}

static bool shapes_fit(adapter_module *m, const safetensors_tensor *down, const safetensors_tensor *up, const safetensors_tensor *mid,
                       error *err) {
    int kernel = m->info->kernel;
    bool down_fits = kernel == 1 || mid ? is_matrix(down) : is_kernel(down, kernel);
    if (!down_fits || down->dims[1] != m->info->in) return shape_error(m, down, err);
    if (!is_matrix(up) || up->dims[0] != m->info->out) return shape_error(m, up, err);
    m->rank = down->dims[0];
    int64_t up_rank = mid && mid->rank == 4 ? mid->dims[0] : m->rank;
    if (mid && (!is_kernel(mid, kernel) || kernel == 1 || mid->dims[1] != m->rank)) return shape_error(m, mid, err);
    if (m->rank < 1 || up_rank < 1 || up->dims[1] != up_rank)
        return error_set(err, "the ranks of %s (%lld) and %s (%lld) do not fit together", down->name, (long long)m->rank, up->name,
                         (long long)up->dims[1]);
    return true;
}

/* ---- Reading ---- */

static bool load_tensor(adapter *a, adapter_module *m, int index, const adapter_part *part, adapter_layout layout, error *err) {
    float *values = adapter_part_read(part, err);
    if (!values) return false;
    const safetensors_tensor *t = part->tensor;
    bool ok = adapter_put_tensor(a, m, index, t->name, t->rank, t->dims, layout, values, err);
    free(values);
    return ok;
}

/* `scale` counts, else alpha / rank, else what PEFT's configuration says, else 1. Trainers take an alpha of 0 as the rank. */
static bool load_scale(adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    bool has_scale, has_alpha, has_config = false;
    double alpha = (double)m->rank;
    m->scale = 1;
    if (!adapter_group_scalar(g, "scale", &m->scale, &has_scale, err) || !adapter_group_scalar(g, "alpha", &alpha, &has_alpha, err))
        return false;
    if (alpha == 0) alpha = (double)m->rank;
    if (!has_scale && has_alpha) m->scale = alpha / (double)m->rank;
    if (!has_scale && !has_alpha && !adapter_file_peft_scale(file, g, m->rank, &has_config, &m->scale, err)) return false;
    m->alpha = m->scale * (double)m->rank;
    return true;
}

static bool lora_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    if (adapter_group_part(g, "dora_scale")) return error_set(err, "is a DoRA adapter; this version applies LoRA and LoCon only");
    const adapter_part *down = adapter_group_part(g, "lora_down.weight"), *up = adapter_group_part(g, "lora_up.weight");
    const adapter_part *mid = adapter_group_part(g, "lora_mid.weight");
    if (!down || !up)
        return error_set(err, "has %s but no %s", (down ? down : up)->tensor->name, down ? "lora_up.weight" : "lora_down.weight");
    if (!shapes_fit(m, down->tensor, up->tensor, mid ? mid->tensor : NULL, err) || !load_scale(m, file, g, err)) return false;
    adapter_layout down_layout = m->info->kernel > 1 && !mid ? ADAPTER_TAPS : ADAPTER_MATRIX;
    return load_tensor(a, m, DOWN, down, down_layout, err) && load_tensor(a, m, UP, up, ADAPTER_MATRIX, err) &&
           (!mid || load_tensor(a, m, MID, mid, ADAPTER_TAPS, err));
}

/* ---- Applying ---- */

static tensor *lora_branch(const adapter_module *m, const adapter_chain *c, tensor *x, tensor *y, float factor) {
    tape *t = c->tape;
    const adapter_site *site = c->site;
    tensor *down = m->tensors[DOWN].value, *up = m->tensors[UP].value, *mid = m->tensors[MID].value;
    bool spatial = m->tensors[DOWN].layout == ADAPTER_TAPS || mid;
    if (spatial && !site->conv) return tape_fail(t, "module %s: an adapter of a convolution on a linear layer", site->name);
    tensor *h = m->tensors[DOWN].layout == ADAPTER_TAPS ? op_conv2d(t, x, down, NULL, NULL, NULL, *site->conv)
                                                        : op_linear(t, x, down, NULL, NULL, 1.0f);
    if (mid) h = op_conv2d(t, h, mid, NULL, NULL, NULL, *site->conv);
    return op_linear(t, h, up, NULL, y, factor * (float)m->scale);
}

/* ---- New ---- */

/* A stream of its own for every module, so that the set of modules does not change a module's numbers (FNV-1a of the name). */
static uint64_t module_stream(const char *name) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
    return hash;
}

/* down: kaiming_uniform(a = sqrt 5), that is uniform within 1 / sqrt(fan-in) of 0; up: zeros. */
static bool lora_init(adapter *a, adapter_module *m, uint64_t seed, error *err) {
    const module_info *info = m->info;
    int64_t k = info->kernel, down[4] = {m->rank, info->in, k, k}, up[4] = {info->out, m->rank, 1, 1};
    int64_t fan_in = info->in * k * k;
    size_t count = (size_t)(m->rank * fan_in);
    float *values = memory_new(count, sizeof *values);
    double bound = 1 / sqrt((double)fan_in);
    uint64_t stream = module_stream(info->flat);
    for (size_t i = 0; i < count; i++) values[i] = (float)((random_uniform(seed, stream, i) * 2 - 1) * bound);
    int rank = info->convolution ? 4 : 2;
    char *down_name = memory_format("%s.lora_down.weight", info->flat), *up_name = memory_format("%s.lora_up.weight", info->flat);
    bool ok = adapter_put_tensor(a, m, DOWN, down_name, rank, down, k > 1 ? ADAPTER_TAPS : ADAPTER_MATRIX, values, err) &&
              adapter_put_tensor(a, m, UP, up_name, rank, up, ADAPTER_MATRIX, NULL, err);
    free(values);
    free(down_name);
    free(up_name);
    m->scale = m->alpha / (double)m->rank;
    return ok;
}

const adapter_kind adapter_kind_lora = {
    .name = "lora",
    .title = "LoRA",
    .recognises = lora_recognises,
    .parts = (const char *const[]){"lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "scale", "dora_scale", NULL},
    .load = lora_load,
    .branch = lora_branch,
    .init = lora_init,
};
