/* The tape: what a run will compute. Model code calls op functions (ops/ops.h); each checks its shapes and appends a record.
   Nothing runs until the tape is planned (graph/plan.h).

   A failed check is remembered (tape_error) and makes every following op return NULL, and ops given NULL return NULL:
   model code needs no checks of its own, plan_create reports the first failure. */
#ifndef VULORA_GRAPH_TAPE_H
#define VULORA_GRAPH_TAPE_H

#include "graph/device.h"

enum { RECORD_INPUTS = 10, RECORD_OUTPUTS = 3, RECORD_INTS = 12, RECORD_FLOATS = 4 };

typedef struct record record;
typedef struct tape tape;

/* Tensors of a record that may be stored in bf16 without changing any result: bit k stands for in[k], or out[k]. */
typedef struct narrowing {
    unsigned in;      /* read only after rounding to bf16 */
    unsigned out;     /* can be written so */
    unsigned weights; /* constants that may be packed for products (cpu_kernels.pack) */
} narrowing;

/* One row of the op table (ops/ops.c): everything the tape, the planner and the executors know about an operation. */
typedef struct op {
    const char *name;
    /* Appends the backward ops of record r; out[0]->grad is set. NULL: no gradient flows through. */
    void (*backward)(tape *t, const record *r);
    /* Bytes of working memory one run of r needs on that device; NULL: none. It is planned like a temporary (r->scratch). */
    size_t (*scratch)(const record *r, const device *d);
    /* Multiply-adds count two. NULL: negligible. */
    double (*flops)(const record *r);
    /* On a CPU that computes in bf16. NULL: no tensor. */
    narrowing (*narrow)(const record *r, const device *d);
    /* On the CPU: whether r can do what `reader` does too, the only reader of its output; then its output is now reader's. NULL: never. */
    bool (*absorb)(record *r, const record *reader, const device *d);
    void (*run_cpu)(const record *r, const device *d);
    void (*run_vulkan)(const record *r, gpu_recording *rec);
    /* Input whose memory out[0] may take over when this record is its last reader (same shape and type), or -1. */
    int in_place;
    /* Little work for its memory, and inputs that the backward part needs anyway or that are no larger: out[0] is not kept for the
       backward part but computed again there. The op's gradient rule must not read it. */
    bool cheap;
} op;

struct record {
    const op *op;
    tensor *in[RECORD_INPUTS]; /* NULL where an optional input is absent */
    tensor *out[RECORD_OUTPUTS];
    tensor *scratch;
    int64_t i[RECORD_INTS]; /* what they mean is the op's own business */
    float f[RECORD_FLOATS];
};

tape *tape_create(device *d);
void tape_free(tape *t);
device *tape_device(const tape *t);

/* The first failure, or NULL. */
const char *tape_error(const tape *t);
/* Notes a failure (the first one is kept); returns NULL, for `return tape_fail(...)`. */
tensor *tape_fail(tape *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* An input, written by the host before a run. type: DTYPE_F32, or DTYPE_COUNT for the device's activation type. */
tensor *tape_input(tape *t, const char *name, dtype type, int rank, const int64_t *dim);
/* A temporary; type as above. */
tensor *tape_temporary(tape *t, dtype type, int rank, const int64_t *dim);
/* Marks a tensor as read by the host after the run. */
void tape_keep(tensor *x);

/* Appends a record. in: n inputs; out tensors must be set by the caller (tape_temporary). needs_grad of the outputs follows from the
 * inputs. */
record *tape_append(tape *t, const op *operation, tensor *const *in, int inputs, tensor *const *out, int outputs);

int tape_length(const tape *t);
record *tape_record(const tape *t, int index);
void tape_remove(tape *t, int index);

/* From here to the next call is one segment: with checkpointing on, only tensors that cross a segment's border are kept for the
   backward part, the others are computed again there. */
void tape_segment(tape *t);

/* Appends the backward ops of everything recorded so far, from `loss` (one element, fp32) to every parameter that needs a gradient.
   `seed`: the gradient of the loss itself, an fp32 tensor of one element (loss scale over accumulation steps).
   With `checkpoint`, segments are recomputed. */
void tape_backward(tape *t, tensor *loss, tensor *seed, bool checkpoint);

/* For backward rules: the gradient x has so far (NULL: none), and its replacement. x may be a recomputed copy: its original is meant.
   Rules that cannot add to the gradient so far in their own last step use grad_add (ops/grad.h). */
tensor *tape_get_grad(const tensor *x);
void tape_set_grad(tensor *x, tensor *g);

#endif
