/* Devices: what there is, what each can do, and opening one. */
#include "vulkan/internal.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_DEVICES = 16, SHARED_BYTES_NEEDED = 32768, GROUP_THREADS_NEEDED = 256 };

typedef struct device_facts {
    VkPhysicalDeviceProperties2 properties;
    VkPhysicalDeviceDriverProperties driver;
    VkPhysicalDeviceSubgroupProperties subgroup;
    VkPhysicalDeviceMaintenance3Properties maintenance;
    VkPhysicalDeviceFeatures2 features;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDeviceShaderFloat16Int8Features float16;
    VkPhysicalDeviceMemoryProperties memory;
    int queue_family; /* -1: none computes */
} device_facts;

static void facts_read(const vulkan_instance *instance, VkPhysicalDevice physical, device_facts *f) {
    memset(f, 0, sizeof *f);
    f->maintenance.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES;
    f->subgroup =
        (VkPhysicalDeviceSubgroupProperties){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES, .pNext = &f->maintenance};
    f->driver = (VkPhysicalDeviceDriverProperties){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES, .pNext = &f->subgroup};
    f->properties = (VkPhysicalDeviceProperties2){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &f->driver};
    instance->vkGetPhysicalDeviceProperties2(physical, &f->properties);
    f->float16.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES;
    f->storage16 =
        (VkPhysicalDevice16BitStorageFeatures){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, .pNext = &f->float16};
    f->features = (VkPhysicalDeviceFeatures2){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &f->storage16};
    instance->vkGetPhysicalDeviceFeatures2(physical, &f->features);
    instance->vkGetPhysicalDeviceMemoryProperties(physical, &f->memory);

    VkQueueFamilyProperties families[32];
    uint32_t count = 32;
    instance->vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, families);
    f->queue_family = -1;
    for (uint32_t i = 0; i < count && f->queue_family < 0; i++)
        if (families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) f->queue_family = (int)i;
}

/* Why the engine cannot run there, or an empty text. Asked only for what the kernels cannot do without. */
static void facts_judge(const device_facts *f, char *out, size_t size) {
    const VkPhysicalDeviceProperties *p = &f->properties.properties;
    const VkPhysicalDeviceLimits *l = &p->limits;
    *out = 0;
    if (p->apiVersion < VK_API_VERSION_1_2)
        snprintf(out, size, "Vulkan %u.%u, 1.2 is needed: update the driver", VK_API_VERSION_MAJOR(p->apiVersion),
                 VK_API_VERSION_MINOR(p->apiVersion));
    else if (f->queue_family < 0)
        snprintf(out, size, "no compute queue");
    else if (l->maxComputeSharedMemorySize < SHARED_BYTES_NEEDED)
        snprintf(out, size, "%u bytes of shared memory (maxComputeSharedMemorySize), %d are needed", l->maxComputeSharedMemorySize,
                 SHARED_BYTES_NEEDED);
    else if (l->maxComputeWorkGroupInvocations < GROUP_THREADS_NEEDED)
        snprintf(out, size, "%u threads in a workgroup (maxComputeWorkGroupInvocations), %d are needed", l->maxComputeWorkGroupInvocations,
                 GROUP_THREADS_NEEDED);
    else if (l->maxPerStageDescriptorStorageBuffers < GPU_BINDINGS)
        snprintf(out, size, "%u storage buffers in a shader (maxPerStageDescriptorStorageBuffers), %d are needed",
                 l->maxPerStageDescriptorStorageBuffers, GPU_BINDINGS);
}

static void facts_info(const device_facts *f, int index, gpu_info *info) {
    const VkPhysicalDeviceProperties *p = &f->properties.properties;
    memset(info, 0, sizeof *info);
    snprintf(info->name, sizeof info->name, "%s", p->deviceName);
    snprintf(info->driver, sizeof info->driver, "%.100s %.140s", f->driver.driverName, f->driver.driverInfo);
    info->index = index;
    info->software = p->deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    info->discrete = p->deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
    for (uint32_t i = 0; i < f->memory.memoryHeapCount; i++) {
        const VkMemoryHeap *heap = &f->memory.memoryHeaps[i];
        if ((heap->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) && heap->size > info->memory_bytes) info->memory_bytes = heap->size;
    }
    info->fp16_storage = f->storage16.storageBuffer16BitAccess;
    info->fp16_math = f->float16.shaderFloat16;
    info->subgroup_size = (int)f->subgroup.subgroupSize;
    facts_judge(f, info->refused, sizeof info->refused);
}

static uint32_t physical_devices(const vulkan_instance *instance, VkPhysicalDevice out[MOST_DEVICES]) {
    uint32_t count = MOST_DEVICES;
    VkResult result = instance->vkEnumeratePhysicalDevices(instance->handle, &count, out);
    return result == VK_SUCCESS || result == VK_INCOMPLETE ? count : 0;
}

int gpu_list(gpu_info *out, int most) {
    const vulkan_instance *instance = vulkan_instance_get();
    VkPhysicalDevice devices[MOST_DEVICES];
    uint32_t count = instance ? physical_devices(instance, devices) : 0;
    for (int i = 0; i < (int)count && i < most; i++) {
        device_facts facts;
        facts_read(instance, devices[i], &facts);
        facts_info(&facts, i, &out[i]);
    }
    return (int)count;
}

/* A submission should stay well under the two seconds after which display drivers reset a device, on the slowest card of its class. */
static double piece_flops(const gpu_info *info) { return info->software ? 0 : info->discrete ? 4e11 : 1e11; }

static void limits_read(const device_facts *f, gpu_limits *limits) {
    const VkPhysicalDeviceLimits *l = &f->properties.properties.limits;
    VkDeviceSize alignment = l->minStorageBufferOffsetAlignment;
    limits->offset_alignment = alignment < 16 ? 16 : (size_t)alignment; /* kernels load 16 bytes at a time */
    limits->range_bytes = l->maxStorageBufferRange;
    limits->allocation_bytes = (size_t)f->maintenance.maxMemoryAllocationSize;
    limits->shared_bytes = l->maxComputeSharedMemorySize;
    limits->group_threads = l->maxComputeWorkGroupInvocations;
    limits->push_bytes = GPU_PUSH_BYTES;
}

static bool device_create(gpu *g, const device_facts *f, error *err) {
    const float priority = 1;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = (uint32_t)f->queue_family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkPhysicalDevice16BitStorageFeatures storage16 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES,
                                                      .storageBuffer16BitAccess = f->storage16.storageBuffer16BitAccess};
    VkDeviceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .pNext = &storage16, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue};
    VkResult result = g->instance->vkCreateDevice(g->physical, &info, NULL, &g->device);
    if (result != VK_SUCCESS) {
        g->device = VK_NULL_HANDLE;
        return gpu_fail(g, result, "opening the device", err);
    }
    vulkan_load_device(g->instance, g->device, &g->vk);
    g->vk.vkGetDeviceQueue(g->device, (uint32_t)f->queue_family, 0, &g->queue);
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = (uint32_t)f->queue_family};
    result = g->vk.vkCreateFence(g->device, &fence, NULL, &g->fence);
    if (result == VK_SUCCESS) result = g->vk.vkCreateCommandPool(g->device, &pool, NULL, &g->transfers);
    return result == VK_SUCCESS || gpu_fail(g, result, "opening the device", err);
}

static bool open_index(gpu *g, int index, error *err) {
    VkPhysicalDevice devices[MOST_DEVICES];
    g->instance = vulkan_instance_get();
    uint32_t count = g->instance ? physical_devices(g->instance, devices) : 0;
    if (count == 0) return error_set(err, "no Vulkan driver found; install one for your graphics card, or use --device cpu");
    if (index < 0 || index >= (int)count)
        return error_set(err, "vulkan:%d: there are only devices vulkan:0 to vulkan:%d (see vulora devices)", index, (int)count - 1);
    device_facts facts;
    g->physical = devices[index];
    facts_read(g->instance, g->physical, &facts);
    facts_info(&facts, index, &g->info);
    limits_read(&facts, &g->limits);
    if (g->info.refused[0]) return error_set(err, "%s cannot be used: %s", g->info.name, g->info.refused);
    g->memory = facts.memory;
    g->queue_family = (uint32_t)facts.queue_family;
    g->flops_per_piece = piece_flops(&g->info);
    return device_create(g, &facts, err) && gpu_memory_open(g, err) && gpu_pipelines_open(g, &facts.properties.properties, err);
}

gpu *gpu_open(int index, error *err) {
    gpu *g = memory_new(1, sizeof *g);
    if (open_index(g, index, err)) return g;
    gpu_close(g);
    return NULL;
}

void gpu_close(gpu *g) {
    if (!g) return;
    if (g->device) {
        g->vk.vkDeviceWaitIdle(g->device);
        gpu_pipelines_close(g);
        gpu_memory_close(g);
        g->vk.vkDestroyCommandPool(g->device, g->transfers, NULL);
        g->vk.vkDestroyFence(g->device, g->fence, NULL);
        g->vk.vkDestroyDevice(g->device, NULL);
    }
    free(g);
}

const gpu_info *gpu_get_info(const gpu *g) { return &g->info; }
const gpu_limits *gpu_get_limits(const gpu *g) { return &g->limits; }
