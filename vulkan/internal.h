/* What the files of this folder share: the loaded Vulkan functions and the structures behind gpu.h's handles. */
#ifndef VULORA_VULKAN_INTERNAL_H
#define VULORA_VULKAN_INTERNAL_H

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include "vulkan/gpu.h"

/* The loader is opened at run time, so that the program starts on machines without one. */
#define VULKAN_GLOBAL_FUNCTIONS(F) F(vkCreateInstance) F(vkEnumerateInstanceLayerProperties) F(vkEnumerateInstanceVersion)
#define VULKAN_INSTANCE_FUNCTIONS(F) \
    F(vkEnumeratePhysicalDevices) \
    F(vkEnumerateDeviceExtensionProperties) \
    F(vkGetPhysicalDeviceProperties2) \
    F(vkGetPhysicalDeviceFeatures2) \
    F(vkGetPhysicalDeviceMemoryProperties) \
    F(vkGetPhysicalDeviceMemoryProperties2) \
    F(vkGetPhysicalDeviceQueueFamilyProperties) \
    F(vkCreateDevice) \
    F(vkGetDeviceProcAddr)
#define VULKAN_DEVICE_FUNCTIONS(F) \
    F(vkDestroyDevice) \
    F(vkDeviceWaitIdle) \
    F(vkGetDeviceQueue) \
    F(vkQueueSubmit) \
    F(vkCreateFence) \
    F(vkDestroyFence) \
    F(vkResetFences) \
    F(vkWaitForFences) \
    F(vkCreateBuffer) \
    F(vkDestroyBuffer) \
    F(vkGetBufferMemoryRequirements) \
    F(vkAllocateMemory) \
    F(vkFreeMemory) \
    F(vkBindBufferMemory) \
    F(vkMapMemory) \
    F(vkCreateCommandPool) \
    F(vkDestroyCommandPool) \
    F(vkAllocateCommandBuffers) \
    F(vkBeginCommandBuffer) \
    F(vkEndCommandBuffer) \
    F(vkCmdCopyBuffer) \
    F(vkCmdFillBuffer) \
    F(vkCmdPipelineBarrier) \
    F(vkCmdBindPipeline) \
    F(vkCmdBindDescriptorSets) \
    F(vkCmdPushConstants) \
    F(vkCmdDispatch) \
    F(vkCmdDispatchBase) \
    F(vkCreateQueryPool) \
    F(vkDestroyQueryPool) \
    F(vkCmdResetQueryPool) \
    F(vkCmdWriteTimestamp) \
    F(vkGetQueryPoolResults) \
    F(vkCreateDescriptorSetLayout) \
    F(vkDestroyDescriptorSetLayout) \
    F(vkCreateDescriptorPool) \
    F(vkDestroyDescriptorPool) \
    F(vkAllocateDescriptorSets) \
    F(vkUpdateDescriptorSets) \
    F(vkCreatePipelineLayout) \
    F(vkDestroyPipelineLayout) \
    F(vkCreateShaderModule) \
    F(vkDestroyShaderModule) \
    F(vkCreateComputePipelines) \
    F(vkDestroyPipeline) \
    F(vkCreatePipelineCache) \
    F(vkDestroyPipelineCache) \
    F(vkGetPipelineCacheData) \
    F(vkMergePipelineCaches)

#define DECLARE(name) PFN_##name name;
typedef struct vulkan_instance {
    VkInstance handle;
    VkDebugUtilsMessengerEXT messenger;
    PFN_vkGetInstanceProcAddr vkGetInstanceProcAddr;
    VULKAN_GLOBAL_FUNCTIONS(DECLARE)
    VULKAN_INSTANCE_FUNCTIONS(DECLARE)
} vulkan_instance;

typedef struct vulkan_functions {
    VULKAN_DEVICE_FUNCTIONS(DECLARE)
} vulkan_functions;
#undef DECLARE

enum {
    GPU_BINDINGS = 10,    /* storage buffers of one dispatch */
    GPU_PUSH_BYTES = 128, /* always pushed whole (lavapipe crashes on constants that were never pushed) */
    GPU_CONSTANTS = 12,   /* specialization constants of one pipeline */
    GPU_STAGING_BYTES = 16 << 20,
    GPU_SMALL_BYTES = 1 << 20, /* buffers up to this share allocations, of which drivers allow few (4096) */
    GPU_SHARED_BYTES = 32 << 20,
    GPU_DIGEST_BYTES = 64
};

/* Device memory with one or more buffers in it. */
typedef struct gpu_memory {
    VkDeviceMemory handle;
    int type;
    size_t bytes, used;
    int buffers;
    void *host; /* NULL where not mapped */
} gpu_memory;

typedef struct gpu_pipeline {
    const char *shader; /* the name in the shader table */
    int constant_count;
    uint32_t constants[GPU_CONSTANTS];
    int subgroup;    /* 0: the driver's choice */
    bool whole_rows; /* it asks how many workgroups there are: they cannot be dispatched in parts along x */
    VkPipeline handle;
    VkResult result; /* of its creation */
} gpu_pipeline;

/* What the slowest device of a class does in a second, and how long a submission should take. */
typedef struct gpu_pace {
    double flops, bytes; /* 0: no estimates */
    double piece_s;      /* 0: no limit */
} gpu_pace;

/* LOST: the driver says so. HANGS: it did not finish in time, so that nothing it may still use can be freed. */
typedef enum gpu_state { GPU_WORKS, GPU_LOST, GPU_HANGS } gpu_state;

struct gpu {
    const vulkan_instance *instance;
    vulkan_functions vk;
    gpu_info info;
    gpu_limits limits;
    VkPhysicalDevice physical;
    VkPhysicalDeviceMemoryProperties memory;
    VkDevice device;
    VkQueue queue;
    uint32_t queue_family;
    gpu_state state;
    VkFence *fences; /* one per submission under way */
    int fence_count;
    double tick_s; /* of the queue's clock; 0: it has none */
    uint64_t tick_mask;
    bool subgroup_control;                   /* a subgroup size can be asked for, */
    bool full_subgroups;                     /* and that no thread of one is missing */
    bool mapped;                             /* device memory is the host's own: buffers stay mapped */
    bool memory_budget;                      /* the driver says how much of its heaps is free */
    uint64_t allocated[VK_MAX_MEMORY_HEAPS]; /* bytes, by this device handle */
    gpu_pace pace;
    VkCommandPool transfers;
    VkCommandBuffer transfer;
    bool transferring;   /* commands have gathered there, */
    gpu_buffer *staging; /* and data here; NULL where mapped */
    size_t staged;       /* bytes of it */
    gpu_memory **shared; /* allocations that small buffers share */
    int shared_count;
    VkDescriptorSetLayout bindings;
    VkPipelineLayout layout;
    VkPipelineCache cache;
    char *cache_path;                    /* NULL: no place to keep it */
    size_t cache_bytes;                  /* of the driver's data that the file holds, */
    char cache_digest[GPU_DIGEST_BYTES]; /* and their checksum */
    gpu_pipeline **pipelines;
    int pipeline_count;
};

struct gpu_buffer {
    gpu *gpu;
    VkBuffer handle;
    gpu_memory *memory;
    size_t bytes;
    void *host; /* NULL where not mapped */
};

/* A compiled shader, in the generated table (cmake/shaders.cmake), sorted by name, NULL name behind the last. */
typedef struct gpu_shader {
    const char *name;
    const uint32_t *code;
    size_t bytes;
} gpu_shader;
extern const gpu_shader gpu_shader_table[];

/* loader.c. NULL: no loader, no driver or no instance. */
const vulkan_instance *vulkan_instance_get(void);
void vulkan_load_device(const vulkan_instance *instance, VkDevice device, vulkan_functions *vk);
/* "out of device memory", "device lost", ... with what to do about it. */
bool gpu_fail(const gpu *g, VkResult result, const char *what, error *err);

/* memory.c. For devices with VK_EXT_memory_budget. */
void gpu_budget(const vulkan_instance *instance, VkPhysicalDevice physical, VkPhysicalDeviceMemoryBudgetPropertiesEXT *out);
bool gpu_memory_open(gpu *g, error *err);
void gpu_memory_close(gpu *g);

/* transfer.c. Submits them one by one, since watchdogs time submissions, after the transfers that have gathered, then waits for all.
   seconds: what each is expected to take; a device that needs very much longer hangs. */
bool gpu_submit(gpu *g, const VkCommandBuffer *commands, const double *seconds, int count, error *err);
/* Does the transfers that have gathered. */
bool gpu_flush(gpu *g, error *err);
bool gpu_zero(gpu_buffer *b, error *err);

/* cache.c */
VkResult gpu_cache_open(gpu *g);
void gpu_cache_save(gpu *g);
void gpu_cache_close(gpu *g);

/* pipeline.c */
bool gpu_pipelines_open(gpu *g, error *err);
void gpu_pipelines_close(gpu *g);
/* The pipeline of that shader, constants and subgroup size, not yet built if it is new; NULL when there is no such shader. */
gpu_pipeline *gpu_pipeline_find(gpu *g, const gpu_dispatch *d);
const gpu_shader *gpu_shader_find(const char *name);
/* Builds all that are not built yet, several at a time. */
bool gpu_pipelines_build(gpu *g, error *err);

#endif
