/* The layer as the loader sees it: which functions are its own, and what comes below. */
#include "tests/vulkan_layer/layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>

layer_next layer_below;
layer_settings layer_pretended;

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *allocator,
                                                      VkInstance *instance);
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_function(VkInstance instance, const char *name);
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_function(VkDevice device, const char *name);

static const struct hook {
    const char *name;
    PFN_vkVoidFunction function;
} INSTANCE_HOOKS[] = {{"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
                      {"vkGetInstanceProcAddr", (PFN_vkVoidFunction)get_instance_function},
                      {"vkGetPhysicalDeviceProperties2KHR", (PFN_vkVoidFunction)layer_vkGetPhysicalDeviceProperties2},
                      {"vkGetPhysicalDeviceFeatures2KHR", (PFN_vkVoidFunction)layer_vkGetPhysicalDeviceFeatures2},
                      {"vkGetPhysicalDeviceMemoryProperties2KHR", (PFN_vkVoidFunction)layer_vkGetPhysicalDeviceMemoryProperties2},
#define HOOK(name) {#name, (PFN_vkVoidFunction)layer_##name},
                      LAYER_INSTANCE_HOOKS(HOOK)},
  DEVICE_HOOKS[] = {{"vkGetDeviceProcAddr", (PFN_vkVoidFunction)get_device_function}, LAYER_DEVICE_HOOKS(HOOK)};
#undef HOOK

static PFN_vkVoidFunction hook_named(const struct hook *list, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i].name, name) == 0) return list[i].function;
    return NULL;
}

static PFN_vkVoidFunction device_hook(const char *name) {
    return hook_named(DEVICE_HOOKS, sizeof DEVICE_HOOKS / sizeof *DEVICE_HOOKS, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_function(VkDevice device, const char *name) {
    PFN_vkVoidFunction own = device_hook(name);
    return own ? own : layer_below.vkGetDeviceProcAddr(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_function(VkInstance instance, const char *name) {
    PFN_vkVoidFunction own = hook_named(INSTANCE_HOOKS, sizeof INSTANCE_HOOKS / sizeof *INSTANCE_HOOKS, name);
    if (!own) own = device_hook(name);
    return own || !layer_below.vkGetInstanceProcAddr ? own : layer_below.vkGetInstanceProcAddr(instance, name);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *allocator,
                                                      VkInstance *instance) {
    VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)(uintptr_t)info->pNext;
    while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO))
        link = (VkLayerInstanceCreateInfo *)(uintptr_t)link->pNext;
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    if (!layer_settings_read(getenv("VULORA_TEST_LAYER"), &layer_pretended)) {
        fprintf(stderr, "VULORA_TEST_LAYER=%s is not understood\n", getenv("VULORA_TEST_LAYER"));
        return VK_ERROR_INITIALIZATION_FAILED;
    }
    layer_below.vkGetInstanceProcAddr = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)layer_below.vkGetInstanceProcAddr(NULL, "vkCreateInstance");
    VkResult result = create ? create(info, allocator, instance) : VK_ERROR_INITIALIZATION_FAILED;
    if (result != VK_SUCCESS) return result;
#define LOAD(name) layer_below.name = (PFN_##name)layer_below.vkGetInstanceProcAddr(*instance, #name);
    LAYER_INSTANCE_HOOKS(LOAD)
#undef LOAD
    return result;
}

VKAPI_ATTR void VKAPI_CALL layer_vkDestroyInstance(VkInstance instance, const VkAllocationCallbacks *allocator) {
    layer_below.vkDestroyInstance(instance, allocator);
}

VKAPI_ATTR VkResult VKAPI_CALL layer_vkCreateDevice(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *allocator, VkDevice *device) {
    VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)(uintptr_t)info->pNext;
    while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO))
        link = (VkLayerDeviceCreateInfo *)(uintptr_t)link->pNext;
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    layer_below.vkGetDeviceProcAddr = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    VkResult result = layer_below.vkCreateDevice(physical, info, allocator, device);
    if (result != VK_SUCCESS) return result;
#define LOAD(name) layer_below.name = (PFN_##name)layer_below.vkGetDeviceProcAddr(*device, #name);
    LAYER_DEVICE_HOOKS(LOAD)
#undef LOAD
    return result;
}

VKAPI_ATTR void VKAPI_CALL layer_vkDestroyDevice(VkDevice device, const VkAllocationCallbacks *allocator) {
    layer_below.vkDestroyDevice(device, allocator);
}

VK_LAYER_EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *interface) {
    interface->loaderLayerInterfaceVersion = 2;
    interface->pfnGetInstanceProcAddr = get_instance_function;
    interface->pfnGetDeviceProcAddr = get_device_function;
    interface->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
