/* What the layer pretends, out of the environment variable VULORA_TEST_LAYER: "range=4194304,no_fp16=1,lost_submit=5". */
#ifndef VULORA_TESTS_VULKAN_LAYER_SETTINGS_H
#define VULORA_TESTS_VULKAN_LAYER_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

/* name, what it replaces or does. Counts begin at 1; what fails goes on failing. */
#define LAYER_SETTINGS(S) \
    S(range, "maxStorageBufferRange") \
    S(allocation, "maxMemoryAllocationSize") \
    S(push, "maxPushConstantsSize") \
    S(threads, "maxComputeWorkGroupInvocations") \
    S(threads_x, "maxComputeWorkGroupSize[0]") \
    S(groups, "maxComputeWorkGroupCount, each axis") \
    S(shared, "maxComputeSharedMemorySize") \
    S(buffers, "maxPerStageDescriptorStorageBuffers") \
    S(alignment, "minStorageBufferOffsetAlignment") \
    S(subgroup, "subgroupSize") \
    S(subgroup_least, "minSubgroupSize") \
    S(subgroup_most, "maxSubgroupSize") \
    S(no_fp16, "shaderFloat16 is missing") \
    S(no_16bit, "storageBuffer16BitAccess is missing") \
    S(no_clock, "timestampValidBits is 0") \
    S(no_queue, "no queue family computes") \
    S(minor, "minor number of Vulkan's version") \
    S(type, "VkPhysicalDeviceType: 1 integrated, 2 discrete, 4 processor") \
    S(separate, "device memory that the host does not see, and host memory beside it") \
    S(carved, "bytes of device memory, which the host sees too, beside host memory that the device reaches") \
    S(heap, "bytes of the device's heap") \
    S(budget, "VK_EXT_memory_budget: bytes of it that may be used,") \
    S(usage, "and are") \
    S(lost_submit, "from this vkQueueSubmit on the device is lost") \
    S(lost_wait, "from this vkWaitForFences on the device is lost") \
    S(stuck_wait, "from this vkWaitForFences on no fence signals in time") \
    S(no_memory, "from this vkAllocateMemory on there is no device memory") \
    S(most_memory, "bytes that can be allocated") \
    S(bad_pipeline, "this vkCreateComputePipelines fails")

typedef struct layer_settings {
#define S(name, what) int64_t name; /* -1: as the device has it */
    LAYER_SETTINGS(S)
#undef S
} layer_settings;

/* false: a name is unknown or a value no number. */
bool layer_settings_read(const char *text, layer_settings *out);

#endif
