/* A Vulkan layer for tests: the software device looks smaller than it is (pretend.c) and fails on demand (faults.c), as settings.h lists.
   The tests switch it on through the loader (tests/support/vulkan_layer.h); the program itself knows nothing of it. It lies under the
   validation layer, which therefore judges the program by what is pretended. */
#ifndef VULORA_TESTS_VULKAN_LAYER_LAYER_H
#define VULORA_TESTS_VULKAN_LAYER_LAYER_H

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include "tests/vulkan_layer/settings.h"

#define LAYER_INSTANCE_HOOKS(F) \
    F(vkDestroyInstance) \
    F(vkCreateDevice) \
    F(vkEnumerateDeviceExtensionProperties) \
    F(vkGetPhysicalDeviceProperties) \
    F(vkGetPhysicalDeviceProperties2) \
    F(vkGetPhysicalDeviceFeatures2) \
    F(vkGetPhysicalDeviceMemoryProperties) \
    F(vkGetPhysicalDeviceMemoryProperties2) \
    F(vkGetPhysicalDeviceQueueFamilyProperties) \
    F(vkGetPhysicalDeviceQueueFamilyProperties2)
#define LAYER_DEVICE_HOOKS(F) \
    F(vkDestroyDevice) \
    F(vkGetBufferMemoryRequirements) \
    F(vkGetBufferMemoryRequirements2) \
    F(vkAllocateMemory) \
    F(vkFreeMemory) \
    F(vkQueueSubmit) \
    F(vkWaitForFences) \
    F(vkCreateComputePipelines)

/* What the next layer or the driver has. One instance and one driver a process is all that tests use. */
typedef struct layer_next {
    PFN_vkGetInstanceProcAddr vkGetInstanceProcAddr;
    PFN_vkGetDeviceProcAddr vkGetDeviceProcAddr;
#define DECLARE(name) PFN_##name name;
    LAYER_INSTANCE_HOOKS(DECLARE)
    LAYER_DEVICE_HOOKS(DECLARE)
#undef DECLARE
} layer_next;

extern layer_next layer_below;
extern layer_settings layer_pretended;

/* layer_vkQueueSubmit and so on, with the types of Vulkan's own. vkDestroyInstance, vkDestroyDevice and vkCreateDevice: layer.c; those
   about physical devices and memory types: pretend.c; the rest: faults.c. */
VKAPI_ATTR void VKAPI_CALL layer_vkDestroyInstance(VkInstance instance, const VkAllocationCallbacks *allocator);
VKAPI_ATTR VkResult VKAPI_CALL layer_vkCreateDevice(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *allocator, VkDevice *device);
VKAPI_ATTR void VKAPI_CALL layer_vkDestroyDevice(VkDevice device, const VkAllocationCallbacks *allocator);

VKAPI_ATTR VkResult VKAPI_CALL layer_vkEnumerateDeviceExtensionProperties(VkPhysicalDevice physical, const char *layer, uint32_t *count,
                                                                          VkExtensionProperties *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceProperties(VkPhysicalDevice physical, VkPhysicalDeviceProperties *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceProperties2(VkPhysicalDevice physical, VkPhysicalDeviceProperties2 *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceFeatures2(VkPhysicalDevice physical, VkPhysicalDeviceFeatures2 *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceMemoryProperties(VkPhysicalDevice physical, VkPhysicalDeviceMemoryProperties *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceMemoryProperties2(VkPhysicalDevice physical, VkPhysicalDeviceMemoryProperties2 *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceQueueFamilyProperties(VkPhysicalDevice physical, uint32_t *count,
                                                                          VkQueueFamilyProperties *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceQueueFamilyProperties2(VkPhysicalDevice physical, uint32_t *count,
                                                                           VkQueueFamilyProperties2 *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetBufferMemoryRequirements(VkDevice device, VkBuffer buffer, VkMemoryRequirements *out);
VKAPI_ATTR void VKAPI_CALL layer_vkGetBufferMemoryRequirements2(VkDevice device, const VkBufferMemoryRequirementsInfo2 *info,
                                                                VkMemoryRequirements2 *out);

VKAPI_ATTR VkResult VKAPI_CALL layer_vkAllocateMemory(VkDevice device, const VkMemoryAllocateInfo *info,
                                                      const VkAllocationCallbacks *allocator, VkDeviceMemory *memory);
VKAPI_ATTR void VKAPI_CALL layer_vkFreeMemory(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks *allocator);
VKAPI_ATTR VkResult VKAPI_CALL layer_vkQueueSubmit(VkQueue queue, uint32_t count, const VkSubmitInfo *submits, VkFence fence);
VKAPI_ATTR VkResult VKAPI_CALL layer_vkWaitForFences(VkDevice device, uint32_t count, const VkFence *fences, VkBool32 all,
                                                     uint64_t timeout);
VKAPI_ATTR VkResult VKAPI_CALL layer_vkCreateComputePipelines(VkDevice device, VkPipelineCache cache, uint32_t count,
                                                              const VkComputePipelineCreateInfo *infos,
                                                              const VkAllocationCallbacks *allocator, VkPipeline *out);

#endif
