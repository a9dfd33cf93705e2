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
    bool wide;                  /* temporaries that only such products read are stored in fp32 all the same: for tests */
    char name[256];
    size_t live_bytes, peak_bytes; /* of pools and arenas */
    uint64_t memory_limit;         /* live_bytes should not pass this; 0: what the device has */
} device;

/* spec: "auto", "cpu", "vulkan", "vulkan:N" or part of a device's name. precision: "auto", "fp32", "fp16", "bf16".
   threads 0: all processors. There is no fallback from one device to another. */
device *device_open(const char *spec, const char *precision, int threads, error *err);
void device_close(device *d);
/* What it computes in, as --precision spells it: "fp32", "fp16" or "bf16". */
const char *device_precision(const device *d);
/* The CPU kernels that compute in that precision: "portable" or an instruction set. */
const char *device_kernels_name(const device *d);
/* Other CPU kernels than the best this processor runs: "auto", "portable" (BLAS), or an instruction set (cpu/cpu.h). */
bool device_set_kernels(device *d, const char *name, error *err);

/* What pools and arenas can still take now. On the CPU `free` can be taken without driving other programs' pages out, `most` with that;
   on Vulkan both are the driver's budget. */
typedef struct device_room {
    uint64_t free, most;
} device_room;

device_room device_get_room(const device *d);

/* Constants and parameters that are released together (one model part, one adapter, one optimizer state). */
typedef struct tensor_pool tensor_pool;

tensor_pool *tensor_pool_create(device *d);
void tensor_pool_free(tensor_pool *pool);

/* Where a constant's elements come from, when it is loaded: what `get` returns is used or copied as in tensor_pool_constant; with *owned
   set, as in tensor_pool_constant_owned. NULL on error. `done` (may be NULL): a copy was made, the elements are not needed any more. Both
   may be called from any thread, one call a constant. */
typedef struct constant_source {
    const void *(*get)(void *user, void **owned, error *err);
    void (*done)(void *user);
    void *user;
} constant_source;

/* A frozen weight that takes no memory before the first plan that reads it is made (plan.h); type: of the elements in the source. */
tensor *tensor_pool_declare(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, constant_source source);
/* Loads those of the constants that are not loaded yet. All of one device. */
bool tensor_load_constants(tensor *const *constants, int count, error *err);
bool tensor_is_loaded(const tensor *constant);
/* On a CPU whose kernels pack weights: whether a constant [outputs, inputs] or [taps, outputs, inputs] is wanted so. It stays as it is when
   it is loaded already and was not packed. */
void tensor_set_packed(tensor *constant, bool wanted);

/* A frozen weight. data: dim[0] x ... elements of `type`, row-major, kept by the caller as long as the pool lives: on the CPU a constant
   is used where it lies. Vulkan devices hold it in fp16 where activations are fp16 and rank >= 2, else in fp32. NULL on error. */
tensor *tensor_pool_constant(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, const void *data, error *err);

/* The same for a constant whose elements had to be rearranged: the pool takes over `data` (from malloc or memory_try_aligned). */
tensor *tensor_pool_constant_owned(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, void *data, error *err);

/* Zeroed fp32. On Vulkan the parameters of a pool lie side by side in the order in which they are made, with zeros between them. */
tensor *tensor_pool_parameter(tensor_pool *pool, const char *name, int rank, const int64_t *dim, error *err);

/* Host copies, fp32 on the host side. Temporaries and inputs can be read and written between plan_create and plan_free;
   writing to an input that no record reads does nothing. */
bool tensor_write(device *d, tensor *t, const float *values, error *err);
bool tensor_read(device *d, const tensor *t, float *values, error *err);

#endif
