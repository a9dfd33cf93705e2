/* The full difference (formats.md 3.9): W + multiplier * diff, bias + multiplier * diff_b. */
#include "lora/parts.h"
#include "lora/stepwise.h"
#include "lycoris/kinds.h"

enum { DIFF, DIFF_B };

static bool full_recognises(const adapter_group *g) { return adapter_group_part(g, "diff") || adapter_group_part(g, "diff_b"); }

static bool full_load(adapter *a, adapter_module *m, const adapter_file *file, const adapter_group *g, error *err) {
    (void)file;
    const module_info *info = m->info;
    const adapter_part *diff = adapter_group_part(g, "diff"), *bias = adapter_group_part(g, "diff_b");
    bool taps = info->kernel > 1;
    if (diff &&
        !(taps ? part_is_kernel(diff->tensor, info->out, info->in, info->kernel) : part_is_matrix(diff->tensor, info->out, info->in)))
        return part_shape_error(m, diff->tensor, err);
    if (bias && (int64_t)bias->tensor->elements != info->out) return part_shape_error(m, bias->tensor, err);
    m->scale = 1;
    return (!diff || part_load(a, m, DIFF, diff, taps ? ADAPTER_TAPS : ADAPTER_MATRIX, err)) &&
           (!bias || part_load(a, m, DIFF_B, bias, ADAPTER_VECTOR, err));
}

static tensor *full_branch(const adapter_module *m, const adapter_chain *c, tensor *x, tensor *y, float factor) {
    if (y && adapter_step_drops(m)) return adapter_step_add(m, c->tape, full_branch(m, c, x, NULL, factor), y);
    tensor *diff = part_value(m, DIFF), *bias = part_value(m, DIFF_B);
    if (diff && c->site->conv) {
        tensor *scaled = factor == 1 ? diff : op_scale_columns(c->tape, diff, (column_scale){.a = factor});
        y = op_conv2d(c->tape, x, scaled, NULL, y, NULL, *c->site->conv);
    } else if (diff) {
        y = op_linear(c->tape, x, diff, NULL, y, factor);
    }
    if (!bias) return y;
    if (factor != 1) bias = op_scale_columns(c->tape, bias, (column_scale){.a = factor});
    return op_scale_columns(c->tape, y, (column_scale){.a = 1, .bias = bias});
}

static bool full_init(adapter *a, adapter_module *m, const adapter_options *o, error *err) {
    const module_info *info = m->info;
    int64_t dims[] = {info->out, info->in, info->kernel, info->kernel};
    m->scale = 1;
    return part_new(a, m, DIFF, info->convolution ? 4 : 2, dims, info->kernel > 1 ? ADAPTER_TAPS : ADAPTER_MATRIX, PART_ZEROS, o->seed,
                    err) &&
           (!info->bias || part_new(a, m, DIFF_B, 1, &info->out, ADAPTER_VECTOR, PART_ZEROS, o->seed, err));
}

const adapter_kind adapter_kind_full = {
    .name = "full",
    .title = "full difference",
    .recognises = full_recognises,
    .parts = (const char *const[]){"diff", "diff_b", NULL},
    .load = full_load,
    .branch = full_branch,
    .init = full_init,
};
