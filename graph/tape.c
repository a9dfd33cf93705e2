#include "graph/tape.h"

#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tensors live in blocks so that their addresses stay; records are moved freely (dead ones are dropped). */
enum { TENSORS_PER_BLOCK = 256 };

typedef struct tensor_block {
    tensor tensors[TENSORS_PER_BLOCK];
    int used;
    struct tensor_block *next;
} tensor_block;

struct tape {
    device *device;
    record **records;
    int length, capacity;
    int *segments; /* first record of each segment after the first */
    int segment_count;
    tensor_block *blocks;
    char failure[512];
};

tape *tape_create(device *d) {
    tape *t = memory_new(1, sizeof *t);
    t->device = d;
    return t;
}

void tape_free(tape *t) {
    if (!t) return;
    for (int i = 0; i < t->length; i++) free(t->records[i]);
    for (tensor_block *b = t->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(t->records);
    free(t->segments);
    free(t);
}

device *tape_device(const tape *t) { return t->device; }

const char *tape_error(const tape *t) { return *t->failure ? t->failure : NULL; }

tensor *tape_fail(tape *t, const char *format, ...) {
    if (!*t->failure) {
        va_list args;
        va_start(args, format);
        vsnprintf(t->failure, sizeof t->failure, format, args);
        va_end(args);
    }
    return NULL;
}

static tensor *tensor_new(tape *t, tensor_home home, const char *name, dtype type, int rank, const int64_t *dim) {
    if (!t->blocks || t->blocks->used == TENSORS_PER_BLOCK) {
        tensor_block *b = memory_new(1, sizeof *b);
        b->next = t->blocks;
        t->blocks = b;
    }
    tensor *x = &t->blocks->tensors[t->blocks->used++];
    *x = (tensor){.home = home, .type = type == DTYPE_COUNT ? t->device->activation : type, .rank = rank, .name = name};
    for (int i = 0; i < rank; i++) x->dim[i] = dim[i];
    x->bytes = (size_t)tensor_count(x) * dtype_size(x->type);
    return x;
}

tensor *tape_input(tape *t, const char *name, dtype type, int rank, const int64_t *dim) {
    return tensor_new(t, TENSOR_INPUT, name, type, rank, dim);
}

tensor *tape_temporary(tape *t, dtype type, int rank, const int64_t *dim) { return tensor_new(t, TENSOR_TEMPORARY, NULL, type, rank, dim); }

void tape_keep(tensor *x) {
    if (x) x->keep = true;
}

record *tape_append(tape *t, const op *operation, tensor *const *in, int inputs, tensor *const *out, int outputs) {
    record *r = memory_new(1, sizeof *r);
    r->op = operation;
    bool needs_grad = false;
    for (int i = 0; i < inputs; i++) {
        r->in[i] = in[i];
        needs_grad |= in[i] && in[i]->needs_grad;
    }
    for (int i = 0; i < outputs; i++) {
        r->out[i] = out[i];
        if (out[i]->home == TENSOR_TEMPORARY) out[i]->needs_grad = needs_grad && operation->backward;
    }
    if (t->length == t->capacity) {
        t->capacity = t->capacity ? 2 * t->capacity : 256;
        t->records = memory_grow(t->records, (size_t)t->capacity, sizeof(record *));
    }
    t->records[t->length++] = r;
    return r;
}

int tape_length(const tape *t) { return t->length; }
record *tape_record(const tape *t, int index) { return t->records[index]; }

void tape_remove(tape *t, int index) {
    free(t->records[index]);
    memmove(t->records + index, t->records + index + 1, (size_t)(--t->length - index) * sizeof *t->records);
}

void tape_segment(tape *t) {
    t->segments = memory_grow(t->segments, (size_t)t->segment_count + 1, sizeof(int));
    t->segments[t->segment_count++] = t->length;
}

tensor *tape_get_grad(const tensor *x) { return x->origin ? x->origin->grad : x->grad; }

void tape_set_grad(tensor *x, tensor *g) {
    tensor *target = x->origin ? x->origin : x;
    if (target->needs_grad && g) target->grad = g;
}

/* ---- backward ---- */

/* Does any record of [begin, end) make x? Tensors are made by one record only, so the maker's index is noted in `first`. */
static void note_makers_and_readers(tape *t, int length) {
    for (int i = 0; i < length; i++)
        for (int k = 0; k < RECORD_OUTPUTS; k++)
            if (t->records[i]->out[k]) t->records[i]->out[k]->first = t->records[i]->out[k]->last = i;
    for (int i = 0; i < length; i++)
        for (int k = 0; k < RECORD_INPUTS; k++)
            if (t->records[i]->in[k]) t->records[i]->in[k]->last = i;
}

/* Appends a record again for new outputs, copies of the old ones. */
static record *append_again(tape *t, const record *r, tensor *const *in) {
    tensor *out[RECORD_OUTPUTS] = {0};
    int outputs = 0;
    for (; outputs < RECORD_OUTPUTS && r->out[outputs]; outputs++) {
        const tensor *x = r->out[outputs];
        out[outputs] = tensor_new(t, TENSOR_TEMPORARY, NULL, x->type, x->rank, x->dim);
        out[outputs]->origin = r->out[outputs];
    }
    record *copy = tape_append(t, r->op, in, RECORD_INPUTS, out, outputs);
    memcpy(copy->i, r->i, sizeof r->i);
    memcpy(copy->f, r->f, sizeof r->f);
    for (int k = 0; k < outputs; k++) out[k]->needs_grad = r->out[k]->needs_grad;
    return copy;
}

/* What the backward part reads in place of x: x itself, or the copy that a cheap op makes again when it is first asked for. */
static tensor *cheap_again(tape *t, tensor *x) {
    if (!x || x->home != TENSOR_TEMPORARY || x->origin || x->keep || !x->needs_grad) return x;
    const record *maker = t->records[x->first];
    if (x->again || !maker->op->cheap || maker->out[0] != x) return x->again ? x->again : x;
    tensor *in[RECORD_INPUTS];
    for (int k = 0; k < RECORD_INPUTS; k++) in[k] = cheap_again(t, maker->in[k]);
    return x->again = append_again(t, maker, in)->out[0];
}

/* The same inside a segment that is recomputed: the copy made there, found through copies[maker][output]. What is read outside of the
   segment is kept. */
static tensor *recomputed(tape *t, tensor *x, int begin, int end, tensor *(*copies)[RECORD_OUTPUTS]) {
    if (!x || x->home != TENSOR_TEMPORARY || x->first < begin || x->first >= end) return cheap_again(t, x);
    if (x->last >= end || x->keep) return x;
    const record *maker = t->records[x->first];
    for (int k = 0; k < RECORD_OUTPUTS; k++)
        if (maker->out[k] == x) return copies[x->first - begin][k];
    return x;
}

/* Appends the records [begin, end) again. The result holds for each the record to take the gradient rule from. */
static record *recompute_segment(tape *t, int begin, int end) {
    size_t n = (size_t)(end - begin);
    tensor *(*copies)[RECORD_OUTPUTS] = memory_new(n, sizeof *copies);
    record *rules = memory_new(n, sizeof *rules);
    for (int i = begin; i < end; i++) {
        const record *r = t->records[i];
        tensor *in[RECORD_INPUTS];
        for (int k = 0; k < RECORD_INPUTS; k++) in[k] = recomputed(t, r->in[k], begin, end, copies);
        const record *copy = append_again(t, r, in);
        memcpy(copies[i - begin], copy->out, sizeof copy->out);
        /* The rule reads kept outputs where they are kept. */
        rules[i - begin] = *copy;
        for (int k = 0; k < RECORD_OUTPUTS; k++) rules[i - begin].out[k] = recomputed(t, r->out[k], begin, end, copies);
    }
    free(copies);
    return rules;
}

static void backward_record(tape *t, const record *r) {
    if (r->op->backward && r->out[0]->needs_grad && tape_get_grad(r->out[0])) r->op->backward(t, r);
}

static void backward_segment(tape *t, int begin, int end, bool recompute) {
    record *rules = recompute ? recompute_segment(t, begin, end) : NULL;
    for (int i = end - 1; i >= begin; i--) {
        record rule = rules ? rules[i - begin] : *t->records[i];
        for (int k = 0; !rules && k < RECORD_INPUTS; k++) rule.in[k] = cheap_again(t, rule.in[k]);
        backward_record(t, &rule);
    }
    free(rules);
}

/* Drops records that nothing reads: forward work of no consequence, recomputed tensors no gradient rule asked for. */
static void drop_dead_records(tape *t) {
    int kept = t->length;
    for (int i = 0; i < t->length; i++)
        for (int k = 0; k < RECORD_OUTPUTS; k++)
            if (t->records[i]->out[k]) t->records[i]->out[k]->last = -1;
    for (int i = t->length - 1; i >= 0; i--) {
        record *r = t->records[i];
        bool alive = false;
        for (int k = 0; k < RECORD_OUTPUTS; k++)
            alive |= r->out[k] && (r->out[k]->home != TENSOR_TEMPORARY || r->out[k]->keep || r->out[k]->last >= 0);
        if (!alive) {
            free(r);
            continue;
        }
        for (int k = 0; k < RECORD_INPUTS; k++)
            if (r->in[k]) r->in[k]->last = i;
        t->records[--kept] = r;
    }
    memmove(t->records, t->records + kept, (size_t)(t->length - kept) * sizeof *t->records);
    t->length -= kept;
    t->segment_count = 0;
}

void tape_backward(tape *t, tensor *loss, tensor *seed, bool checkpoint) {
    if (*t->failure || !loss || !seed) return;
    int end = t->length;
    note_makers_and_readers(t, end);
    tape_set_grad(loss, seed);
    for (int s = t->segment_count; s >= 0; s--) {
        int begin = s ? t->segments[s - 1] : 0;
        /* The last segment's tensors are still there. */
        backward_segment(t, begin, end, checkpoint && s < t->segment_count);
        end = begin;
    }
    tape_keep(loss);
    drop_dead_records(t);
}
