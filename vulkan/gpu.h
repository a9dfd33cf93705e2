/* A Vulkan device as the engine sees it: buffers, shaders by name, and recorded sequences of dispatches. Knows nothing of tensors. */
#ifndef VULORA_VULKAN_GPU_H
#define VULORA_VULKAN_GPU_H

#include "base/dtype.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct gpu gpu;
typedef struct gpu_buffer gpu_buffer;
typedef struct gpu_recording gpu_recording;

/* Part of a buffer. offset is a multiple of gpu_limits.offset_alignment. */
typedef struct gpu_range {
    gpu_buffer *buffer;
    size_t offset, size;
} gpu_range;

typedef struct gpu_info {
    char name[256], driver[256];
    int index;     /* as in vulkan:N */
    bool software; /* a CPU pretending: lavapipe */
    bool discrete;
    uint64_t memory_bytes; /* of the largest heap that buffers can be in, */
    uint64_t memory_free;  /* and what is free of it now; 0: the driver does not say */
    bool fp16_storage, fp16_math;
    bool shuffles;      /* between threads of a subgroup, of which there are at least eight */
    bool small_kernels; /* short programs are better: a CPU compiles and runs them. VULORA_VK_LARGE_KERNELS in the environment: not so, for
                           tests */
    bool mixed_fma;     /* fp32 multiply-adds take half-float operands at no cost, but floats no faster (RDNA 1 and 2) */
    int matrix_size;    /* of square fragments that subgroups multiply (fp16 in, fp32 sums): 8 or 16; 0: no matrix units */
    bool matrix_halfs;  /* there are fp16 sums of that size too */
    int units;          /* compute units (AMD), streaming multiprocessors (NVIDIA), shader cores (ARM); 0: not known */
    int subgroup_size;
    int subgroup_least, subgroup_most; /* what a dispatch may ask for; both subgroup_size where there is no choice */
    char refused[256];                 /* empty, or why this device cannot be used */
} gpu_info;

/* Fills at most `most` entries, returns how many devices there are (0 also when there is no Vulkan loader or driver). */
int gpu_list(gpu_info *out, int most);

typedef struct gpu_limits {
    size_t offset_alignment, range_bytes /* maxStorageBufferRange */, allocation_bytes /* maxMemoryAllocationSize */;
    uint32_t shared_bytes, group_threads, push_bytes;
    uint32_t groups[3]; /* workgroups of one dispatch along x, y, z */
} gpu_limits;

gpu *gpu_open(int index, error *err);
void gpu_close(gpu *g);
const gpu_info *gpu_get_info(const gpu *g);
const gpu_limits *gpu_get_limits(const gpu *g);
/* false after the driver lost the device or it hung: whatever was in its memory must be taken for lost. */
bool gpu_usable(const gpu *g);

/* Bytes that buffers can still take now, in the heap that they come from. With VK_EXT_memory_budget: the budget that the driver gives this
   process beside all others, less what the process uses. Without: the heap's size less what this gpu has allocated, which knows nothing
   of other programs. Asks the driver each time; drivers move the budget as other programs come and go. */
uint64_t gpu_memory_free(const gpu *g);

/* Storage buffer in device memory, zeroed. NULL with a message naming the size when there is no room. */
gpu_buffer *gpu_buffer_create(gpu *g, size_t bytes, error *err);
void gpu_buffer_free(gpu_buffer *buffer);
bool gpu_upload(gpu *g, gpu_range to, const void *data, error *err);
bool gpu_download(gpu *g, gpu_range from, void *data, error *err);

/* Whether the build has a kernel of that name: some need a newer shader compiler. */
bool gpu_has_shader(const char *name);

/* One kernel launch. Shaders are named "<file>_<types>", e.g. "gemm_hhh": one letter (f: float, h: float16_t) per binding that may be
   either, in binding order (shaders/README.md lists them). Barriers come from overlaps of ranges. */
typedef struct gpu_dispatch {
    const char *shader;
    const uint32_t *constants; /* specialization constants 0, 1, ... */
    int constant_count;
    const void *push;
    uint32_t push_bytes;
    const gpu_range *ranges; /* bindings 0, 1, ... */
    int range_count;
    uint32_t written; /* bit i: binding i is written (it may be read too) */
    uint32_t groups[3];
    int subgroup; /* its size, between subgroup_least and subgroup_most, a divisor of the workgroup's; 0: the driver's choice */
} gpu_dispatch;

/* A recording is made once and submitted as often as wanted. Failures while recording are reported by gpu_recording_end. */
gpu_recording *gpu_recording_begin(gpu *g);
const gpu *gpu_recording_device(const gpu_recording *rec);
void gpu_record(gpu_recording *rec, const gpu_dispatch *dispatch, double flops);
bool gpu_recording_end(gpu_recording *rec, error *err);
/* Submits everything, in pieces that should each take a quarter of a second at most, then waits. Pieces follow an estimate for the slowest
   device of the class first; what they took is measured, and they are cut anew where that is far off. A device that does not finish in a
   time that is generous many times over is given up with a message. */
bool gpu_run(gpu_recording *rec, error *err);
void gpu_recording_free(gpu_recording *rec);

typedef struct gpu_counts {
    int dispatches, barriers, submissions;
    double longest_s; /* the longest submission of the last run, by the device's clock; 0: not run yet, or it has no clock */
} gpu_counts;
gpu_counts gpu_recording_count(gpu_recording *rec);

/* How many messages the validation layer has given since the program started, for tests. *first (may be NULL): the first one's text.
   The layer is on when the environment variable VULORA_VK_VALIDATE is set; that it is not installed then counts as a message. */
int gpu_validation_messages(const char **first);

#endif
