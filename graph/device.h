/* What computes: the CPU, or one Vulkan device. And the memory that outlives a run: pools of constants and parameters. */
#ifndef VULORA_GRAPH_DEVICE_H
#define VULORA_GRAPH_DEVICE_H

#include "base/error.h"
#include "cpu/cpu.h"
#include "graph/tensor.h"

typedef struct device {
    gpu *gpu;                   /* NULL: the CPU */
    dtype activation;           /* what temporaries are stored in: F32, or F16 on Vulkan */
    int threads;                /* CPU threads */
    const cpu_kernels *kernels; /* own kernels for this processor, or NULL: BLAS */
    bool bf16;                  /* operands of CPU products are rounded to bf16 */
    char name[256];
    size_t live_bytes, peak_bytes; /* of pools and arenas */
} device;

/* spec: "auto", "cpu", "vulkan", "vulkan:N" or part of a device's name. precision: "auto", "fp32", "fp16", "bf16".
   threads 0: all processors. There is no fallback from one device to another. */
device *device_open(const char *spec, const char *precision, int threads, error *err);
void device_close(device *d);
/* What it computes in, as --precision spells it: "fp32", "fp16" or "bf16". */
const char *device_precision(const device *d);
/* Other CPU kernels than the best this processor runs: "auto", "portable" (BLAS), or an instruction set (cpu/cpu.h). */
bool device_set_kernels(device *d, const char *name, error *err);

/* Constants and parameters that are released together (one model part, one adapter, one optimizer state). */
typedef struct tensor_pool tensor_pool;

tensor_pool *tensor_pool_create(device *d);
void tensor_pool_free(tensor_pool *pool);

/* A frozen weight. data: dim[0] x ... elements of `type`, row-major, kept by the caller as long as the pool lives: on the CPU a constant
   is used where it lies. Vulkan devices hold it in fp16 where activations are fp16 and rank >= 2, else in fp32. NULL on error. */
tensor *tensor_pool_constant(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, const void *data, error *err);

/* The same for a constant whose elements had to be rearranged: the pool takes over `data` (from malloc or memory_try_aligned). */
tensor *tensor_pool_constant_owned(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, void *data, error *err);

/* Zeroed fp32. */
tensor *tensor_pool_parameter(tensor_pool *pool, const char *name, int rank, const int64_t *dim, error *err);

/* Host copies, fp32 on the host side. Temporaries and inputs can be read and written between plan_create and plan_free;
   writing to an input that no record reads does nothing. */
bool tensor_write(device *d, tensor *t, const float *values, error *err);
bool tensor_read(device *d, const tensor *t, float *values, error *err);

#endif
