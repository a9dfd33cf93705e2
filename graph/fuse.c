#include "graph/fuse.h"

/* `block` and `last`, which the planner fills in later, hold how often a tensor is read and by which record last. Records with gradients
   are left as they are: what they make is read again. */

static void count_readers(const tape *t) {
    int length = tape_length(t);
    for (int i = 0; i < length; i++)
        for (int k = 0; k < RECORD_OUTPUTS; k++)
            if (tape_record(t, i)->out[k]) tape_record(t, i)->out[k]->block = 0;
    for (int i = 0; i < length; i++)
        for (int k = 0; k < RECORD_INPUTS; k++) {
            tensor *x = tape_record(t, i)->in[k];
            if (x && x->home == TENSOR_TEMPORARY) x->block++, x->last = i;
        }
}

void tape_fuse(tape *t) {
    const device *d = tape_device(t);
    if (d->gpu) return;
    count_readers(t);
    for (int i = tape_length(t) - 1; i >= 0; i--) {
        record *r = tape_record(t, i);
        const tensor *x = r->out[0];
        if (!r->op->absorb || x->home != TENSOR_TEMPORARY || x->keep || x->needs_grad || x->block != 1) continue;
        int reader = x->last;
        if (r->op->absorb(r, tape_record(t, reader), d)) tape_remove(t, reader);
    }
}
