/* LoRA (Hu et al. 2021) on linear layers, and LoCon, the same on convolutions (LyCORIS; formats.md 3.1 and 3.2):
   y += multiplier * alpha / rank * up(down(x)), `down` with the convolution's own kernel, stride and padding, `up` 1x1. With `lora_mid`
   (Tucker) down and up are 1x1 and the kernel is in the middle. */
#include "lora/parts.h"
#include "lora/start.h"
#include "lora/stepwise.h"

enum { DOWN, UP, MID };

static bool lora_recognises(const adapter_group *g) {
    return adapter_group_part(g, "lora_down.weight") || adapter_group_part(g, "lora_up.weight");
}

/* ---- Reading ---- */

static bool shapes_fit(adapter_module *m, const safetensors_tensor *down, const safetensors_tensor *up, const safetensors_tensor *mid,
                       error *err) {
    int kernel = m->info->kernel;
    int64_t in = m->info->in, out = m->info->out, rank = down->rank ? down->dims[0] : 0;
    if (!(kernel == 1 || mid ? part_is_matrix(down, rank, in) : part_is_kernel(down, rank, in, kernel)))
        return part_shape_error(m, down, err);
    int64_t up_rank = mid && mid->rank == 4 ? mid->dims[0] : rank;
    if (mid && (kernel == 1 || !part_is_kernel(mid, up_rank, rank, kernel))) return part_shape_error(m, mid, err);
    if (up->rank < 2 || !part_is_matrix(up, out, up->dims[1])) return part_shape_error(m, up, err);
    if (rank < 1 || up_rank < 1 || up->dims[1] != up_rank)
        return error_set(err, "the ranks of %s (%lld) and %s (%lld) do not fit together", down->name, (long long)rank, up->name,
                         (long long)up->dims[1]);
    return true;
}

static bool lora_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    const adapter_part *down = adapter_group_part(g, "lora_down.weight"), *up = adapter_group_part(g, "lora_up.weight");
    const adapter_part *mid = adapter_group_part(g, "lora_mid.weight");
    if (!down) return part_missing_error(g, "lora_up.weight", "lora_down.weight", err);
    if (!up) return part_missing_error(g, "lora_down.weight", "lora_up.weight", err);
    if (!shapes_fit(m, down->tensor, up->tensor, mid ? mid->tensor : NULL, err)) return false;
    adapter_layout down_layout = m->info->kernel > 1 && !mid ? ADAPTER_TAPS : ADAPTER_MATRIX;
    return part_load_scale(m, file, g, down->tensor->dims[0], err) && part_load(a, m, DOWN, down, down_layout, err) &&
           part_load(a, m, UP, up, ADAPTER_MATRIX, err) && (!mid || part_load(a, m, MID, mid, ADAPTER_TAPS, err));
}

/* ---- Applying ---- */

static tensor *lora_branch(const adapter_module *m, const adapter_chain *c, tensor *x, tensor *y, float factor) {
    tensor *down = part_value(m, DOWN), *up = part_factor(m, c->tape, UP), *mid = part_value(m, MID);
    tensor *h = adapter_chain_factor(c, x, down);
    if (mid) h = adapter_chain_factor(c, h, mid);
    h = adapter_step_hidden(m, c->tape, h);
    y = op_linear(c->tape, h, up, NULL, y, factor * (float)m->scale);
    if (!m->start[UP]) return y;
    return op_linear(c->tape, adapter_chain_factor(c, x, m->start[DOWN]), m->start[UP], NULL, y, -factor * (float)m->scale);
}

static bool lora_factors(const adapter_module *m, tape *t, tensor **up, tensor **down) {
    tensor *mid = part_value(m, MID);
    if (m->start[UP]) return false;
    *up = part_factor(m, t, UP);
    *down = mid ? op_matmul(t, mid, part_value(m, DOWN), 1, true) : part_value(m, DOWN);
    return true;
}

static tensor *lora_difference(const adapter_module *m, tape *t) {
    tensor *up, *down;
    if (lora_factors(m, t, &up, &down)) return op_matmul(t, up, down, (float)m->scale, true);
    tensor *now = op_matmul(t, part_value(m, UP), part_value(m, DOWN), (float)m->scale, true);
    tensor *first = op_matmul(t, m->start[UP], m->start[DOWN], (float)m->scale, true);
    return op_scale_columns(t, now, (column_scale){.a = 1, .residual = first, .c = -1});
}

/* ---- New ---- */

/* up: zeros, unless a scalar begins at 0 instead. */
static bool lora_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    const module_info *info = m->info;
    bool mid = o->tucker && info->kernel > 1;
    int64_t k = mid ? 1 : info->kernel, down[4] = {m->rank, info->in, k, k}, up[4] = {info->out, m->rank, 1, 1};
    int64_t middle[4] = {m->rank, m->rank, info->kernel, info->kernel};
    int rank = info->convolution ? 4 : 2;
    part_fill fill = o->init == ADAPTER_INIT_NORMAL ? PART_NORMAL_RANK : PART_KAIMING,
              up_fill = o->trained_scalar ? PART_KAIMING : PART_ZEROS;
    m->scale = m->alpha / (double)m->rank;
    if (a->stepwise.block_size > 0 && m->rank % a->stepwise.block_size)
        return error_set(err, "--block-size %d: does not divide the rank %lld of module %s", a->stepwise.block_size, (long long)m->rank,
                         info->name);
    return part_new(a, m, DOWN, rank, down, k > 1 ? ADAPTER_TAPS : ADAPTER_MATRIX, fill, o->seed, err) &&
           part_new(a, m, UP, rank, up, ADAPTER_MATRIX, up_fill, o->seed, err) &&
           (!mid || part_new(a, m, MID, 4, middle, ADAPTER_TAPS, PART_KAIMING, o->seed, err)) &&
           (o->init != ADAPTER_INIT_PISSA || adapter_start_new(a, m, err));
}

const adapter_kind adapter_kind_lora = {
    .name = "lora",
    .title = "LoRA",
    .recognises = lora_recognises,
    .parts = (const char *const[]){"lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "scale", "dora_scale", NULL},
    .scalar = "alpha",
    .scaled = 1u << UP,
    .load = lora_load,
    .branch = lora_branch,
    .difference = lora_difference,
    .factors = lora_factors,
    .init = lora_init,
};
