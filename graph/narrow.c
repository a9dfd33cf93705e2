#include "graph/narrow.h"

/* `block`, which the planner fills in later, counts the uses of a tensor that stand in the way. */

static bool may_pack(const tensor *x) { return x && x->home == TENSOR_CONSTANT && x->rank >= 2; }
static bool may_narrow(const tensor *x) { return x && x->home == TENSOR_TEMPORARY && x->type == DTYPE_F32 && !x->keep; }

static narrowing narrowing_of(const record *r, const device *d) { return r->op->narrow ? r->op->narrow(r, d) : (narrowing){0}; }

static void count_uses(tensor *const *tensors, int count, unsigned allowed) {
    for (int k = 0; k < count; k++)
        if (may_narrow(tensors[k]) && !(allowed >> k & 1u)) tensors[k]->block++;
}

static void count_weights(tensor *const *in, unsigned allowed) {
    for (int k = 0; k < RECORD_INPUTS; k++)
        if (may_pack(in[k]) && !(allowed >> k & 1u)) in[k]->block++;
}

void tape_narrow(tape *t) {
    const device *d = tape_device(t);
    if (d->gpu || !d->bf16 || d->wide) return;
    int length = tape_length(t);
    for (int i = 0; i < length; i++)
        for (int k = 0; k < RECORD_OUTPUTS; k++)
            if (may_narrow(tape_record(t, i)->out[k])) tape_record(t, i)->out[k]->block = 0;
    for (int i = 0; i < length; i++) {
        record *r = tape_record(t, i);
        narrowing n = narrowing_of(r, d);
        count_uses(r->in, RECORD_INPUTS, n.in);
        count_uses(r->out, RECORD_OUTPUTS, n.out);
    }
    for (int i = 0; i < length; i++)
        for (int k = 0; k < RECORD_OUTPUTS; k++) {
            tensor *x = tape_record(t, i)->out[k];
            if (!may_narrow(x) || x->block > 0) continue;
            x->type = DTYPE_BF16;
            x->bytes = (size_t)tensor_count(x) * dtype_size(x->type);
        }
}

void tape_pack(tape *t) {
    const device *d = tape_device(t);
    if (d->gpu || !d->bf16 || d->wide) return;
    int length = tape_length(t);
    for (int i = 0; i < length; i++)
        for (int k = 0; k < RECORD_INPUTS; k++)
            if (may_pack(tape_record(t, i)->in[k])) tape_record(t, i)->in[k]->block = 0;
    for (int i = 0; i < length; i++) {
        const record *r = tape_record(t, i);
        count_weights(r->in, narrowing_of(r, d).weights);
    }
    for (int i = 0; i < length; i++)
        for (int k = 0; k < RECORD_INPUTS; k++) {
            tensor *x = tape_record(t, i)->in[k];
            if (may_pack(x)) tensor_set_packed(x, x->block == 0);
        }
}
