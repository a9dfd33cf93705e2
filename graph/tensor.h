/* A tensor: up to four dimensions, the last one contiguous. It says where its elements live, never how they came about. */
#ifndef VULORA_GRAPH_TENSOR_H
#define VULORA_GRAPH_TENSOR_H

#include "base/dtype.h"
#include "vulkan/gpu.h"

#include <stdbool.h>

enum { TENSOR_RANK = 4 };

typedef enum tensor_home {
    TENSOR_TEMPORARY, /* made and consumed inside a run; the planner shares its memory with others */
    TENSOR_INPUT,     /* written by the host before a run, its memory is its own */
    TENSOR_CONSTANT,  /* a frozen weight, in a pool */
    TENSOR_PARAMETER  /* lives in a pool and changes: adapter weights, their gradients, optimizer moments */
} tensor_home;

typedef struct tensor {
    tensor_home home;
    dtype type; /* F32 or F16; on the CPU constants, and temporaries after tape_narrow, also BF16 */
    int rank;
    int64_t dim[TENSOR_RANK];
    const char *name;      /* for messages; NULL for temporaries */
    bool needs_grad;       /* a trained parameter, or computed from one */
    struct tensor *grad;   /* same shape; of a parameter: a parameter that backward ops add to; of a temporary: set by tape_backward */
    struct tensor *origin; /* of a copy recomputed for the backward part: the tensor it is a copy of */
    struct tensor *again;  /* of a cheap op's output: its copy in the backward part, once there is one */
    bool keep;             /* read by the host after a run: its memory is not reused */
    bool packed;           /* of a constant on the CPU: laid out by cpu_kernels.pack */
    int first, last;       /* records that write it first and read it last; filled in by the planner */
    size_t bytes;          /* of its elements */
    size_t offset;         /* in the arena, for temporaries and inputs */
    int block;             /* which block of the arena (a device may limit the size of one) */
    void *cpu;             /* address of the elements on the CPU device */
    gpu_range gpu;         /* and on a Vulkan device */
} tensor;

int64_t tensor_count(const tensor *t);   /* elements */
int64_t tensor_rows(const tensor *t);    /* product of all dimensions but the last */
int64_t tensor_columns(const tensor *t); /* the last dimension */
bool tensor_same_shape(const tensor *a, const tensor *b);
const char *tensor_shape_text(const tensor *t, char out[64]); /* "[2, 64, 64, 320]" */

#endif
