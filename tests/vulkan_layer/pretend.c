/* The device as it looks through the layer. */
#include "tests/vulkan_layer/layer.h"

#include <stdio.h>
#include <string.h>

#define PRETEND(field, name, type) \
    if (layer_pretended.name >= 0) field = (type)layer_pretended.name

/* ---- extensions: a memory budget, which the software device lacks ---- */

VKAPI_ATTR VkResult VKAPI_CALL layer_vkEnumerateDeviceExtensionProperties(VkPhysicalDevice physical, const char *layer, uint32_t *count,
                                                                          VkExtensionProperties *out) {
    if (layer || layer_pretended.budget < 0) return layer_below.vkEnumerateDeviceExtensionProperties(physical, layer, count, out);
    uint32_t room = out ? *count : 0, there = out && room ? room - 1 : 0;
    VkResult result = layer_below.vkEnumerateDeviceExtensionProperties(physical, layer, &there, out);
    *count = there + 1;
    if (!out) return result;
    if (result != VK_SUCCESS || room < 1) return VK_INCOMPLETE;
    memset(&out[there], 0, sizeof *out);
    snprintf(out[there].extensionName, sizeof out->extensionName, "%s", VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    out[there].specVersion = 1;
    return VK_SUCCESS;
}

/* ---- properties ---- */

static void pretend_properties(VkPhysicalDeviceProperties *p) {
    VkPhysicalDeviceLimits *l = &p->limits;
    PRETEND(l->maxStorageBufferRange, range, uint32_t);
    PRETEND(l->maxPushConstantsSize, push, uint32_t);
    PRETEND(l->maxComputeWorkGroupInvocations, threads, uint32_t);
    PRETEND(l->maxComputeWorkGroupSize[0], threads_x, uint32_t);
    for (int i = 0; i < 3; i++) PRETEND(l->maxComputeWorkGroupCount[i], groups, uint32_t);
    PRETEND(l->maxComputeSharedMemorySize, shared, uint32_t);
    PRETEND(l->maxPerStageDescriptorStorageBuffers, buffers, uint32_t);
    PRETEND(l->minStorageBufferOffsetAlignment, alignment, VkDeviceSize);
    if (layer_pretended.minor >= 0) p->apiVersion = VK_MAKE_API_VERSION(0, 1, (uint32_t)layer_pretended.minor, 0);
    PRETEND(p->deviceType, type, VkPhysicalDeviceType);
}

VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceProperties(VkPhysicalDevice physical, VkPhysicalDeviceProperties *out) {
    layer_below.vkGetPhysicalDeviceProperties(physical, out);
    pretend_properties(out);
}

static void pretend_more(VkBaseOutStructure *s) {
    switch (s->sType) {
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES:
        PRETEND(((VkPhysicalDeviceMaintenance3Properties *)(void *)s)->maxMemoryAllocationSize, allocation, VkDeviceSize);
        break;
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES:
        PRETEND(((VkPhysicalDeviceSubgroupProperties *)(void *)s)->subgroupSize, subgroup, uint32_t);
        break;
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES:
        PRETEND(((VkPhysicalDeviceVulkan11Properties *)(void *)s)->maxMemoryAllocationSize, allocation, VkDeviceSize);
        PRETEND(((VkPhysicalDeviceVulkan11Properties *)(void *)s)->subgroupSize, subgroup, uint32_t);
        break;
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES:
        PRETEND(((VkPhysicalDeviceSubgroupSizeControlProperties *)(void *)s)->minSubgroupSize, subgroup_least, uint32_t);
        PRETEND(((VkPhysicalDeviceSubgroupSizeControlProperties *)(void *)s)->maxSubgroupSize, subgroup_most, uint32_t);
        break;
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES:
        PRETEND(((VkPhysicalDeviceVulkan13Properties *)(void *)s)->minSubgroupSize, subgroup_least, uint32_t);
        PRETEND(((VkPhysicalDeviceVulkan13Properties *)(void *)s)->maxSubgroupSize, subgroup_most, uint32_t);
        break;
    default: break;
    }
}

VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceProperties2(VkPhysicalDevice physical, VkPhysicalDeviceProperties2 *out) {
    layer_below.vkGetPhysicalDeviceProperties2(physical, out);
    pretend_properties(&out->properties);
    for (VkBaseOutStructure *s = out->pNext; s; s = s->pNext) pretend_more(s);
}

/* ---- features ---- */

VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceFeatures2(VkPhysicalDevice physical, VkPhysicalDeviceFeatures2 *out) {
    layer_below.vkGetPhysicalDeviceFeatures2(physical, out);
    bool no_math = layer_pretended.no_fp16 > 0, no_storage = layer_pretended.no_16bit > 0;
    for (VkBaseOutStructure *s = out->pNext; s; s = s->pNext) {
        if (no_math && s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES)
            ((VkPhysicalDeviceShaderFloat16Int8Features *)(void *)s)->shaderFloat16 = VK_FALSE;
        if (no_math && s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES)
            ((VkPhysicalDeviceVulkan12Features *)(void *)s)->shaderFloat16 = VK_FALSE;
        if (no_storage && s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES)
            ((VkPhysicalDevice16BitStorageFeatures *)(void *)s)->storageBuffer16BitAccess = VK_FALSE;
        if (no_storage && s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES)
            ((VkPhysicalDeviceVulkan11Features *)(void *)s)->storageBuffer16BitAccess = VK_FALSE;
    }
}

/* ---- memory: the software device has one heap and one type, which the host sees ---- */

static bool two_types(void) { return layer_pretended.separate > 0 || layer_pretended.carved > 0; }

static void pretend_memory(VkPhysicalDeviceMemoryProperties *m) {
    const VkMemoryPropertyFlags host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    if (two_types()) {
        m->memoryTypeCount = m->memoryHeapCount = 2;
        m->memoryTypes[0] = (VkMemoryType){VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | (layer_pretended.separate > 0 ? 0 : host), 0};
        m->memoryTypes[1] = (VkMemoryType){host, 1};
        m->memoryHeaps[1] = (VkMemoryHeap){m->memoryHeaps[0].size, 0};
    }
    PRETEND(m->memoryHeaps[0].size, carved, VkDeviceSize);
    PRETEND(m->memoryHeaps[0].size, heap, VkDeviceSize);
}

VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceMemoryProperties(VkPhysicalDevice physical, VkPhysicalDeviceMemoryProperties *out) {
    layer_below.vkGetPhysicalDeviceMemoryProperties(physical, out);
    pretend_memory(out);
}

VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceMemoryProperties2(VkPhysicalDevice physical, VkPhysicalDeviceMemoryProperties2 *out) {
    layer_below.vkGetPhysicalDeviceMemoryProperties2(physical, out);
    pretend_memory(&out->memoryProperties);
    for (VkBaseOutStructure *s = out->pNext; s; s = s->pNext) {
        if (s->sType != VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT || layer_pretended.budget < 0) continue;
        VkPhysicalDeviceMemoryBudgetPropertiesEXT *b = (void *)s;
        b->heapBudget[0] = (VkDeviceSize)layer_pretended.budget;
        b->heapUsage[0] = layer_pretended.usage < 0 ? 0 : (VkDeviceSize)layer_pretended.usage;
    }
}

VKAPI_ATTR void VKAPI_CALL layer_vkGetBufferMemoryRequirements(VkDevice device, VkBuffer buffer, VkMemoryRequirements *out) {
    layer_below.vkGetBufferMemoryRequirements(device, buffer, out);
    if (two_types()) out->memoryTypeBits = 3;
}

VKAPI_ATTR void VKAPI_CALL layer_vkGetBufferMemoryRequirements2(VkDevice device, const VkBufferMemoryRequirementsInfo2 *info,
                                                                VkMemoryRequirements2 *out) {
    layer_below.vkGetBufferMemoryRequirements2(device, info, out);
    if (two_types()) out->memoryRequirements.memoryTypeBits = 3;
}

/* ---- queues ---- */

static void pretend_queue(VkQueueFamilyProperties *q) {
    if (layer_pretended.no_queue > 0) q->queueFlags &= ~(VkQueueFlags)VK_QUEUE_COMPUTE_BIT;
    if (layer_pretended.no_clock > 0) q->timestampValidBits = 0;
}

VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceQueueFamilyProperties(VkPhysicalDevice physical, uint32_t *count,
                                                                          VkQueueFamilyProperties *out) {
    layer_below.vkGetPhysicalDeviceQueueFamilyProperties(physical, count, out);
    for (uint32_t i = 0; out && i < *count; i++) pretend_queue(&out[i]);
}

VKAPI_ATTR void VKAPI_CALL layer_vkGetPhysicalDeviceQueueFamilyProperties2(VkPhysicalDevice physical, uint32_t *count,
                                                                           VkQueueFamilyProperties2 *out) {
    layer_below.vkGetPhysicalDeviceQueueFamilyProperties2(physical, count, out);
    for (uint32_t i = 0; out && i < *count; i++) pretend_queue(&out[i].queueFamilyProperties);
}
