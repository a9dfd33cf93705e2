/* Devices: what there is, what each can do, and opening one. */
#include "vulkan/internal.h"
#include "vulkan/matrix.h"

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
    VkPhysicalDeviceSubgroupSizeControlProperties subgroup_sizes; /* zeros without the extension */
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroup_control;
    VkPhysicalDeviceShaderIntegerDotProductProperties integer_dot;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix;
    VkPhysicalDeviceVulkanMemoryModelFeatures memory_model; /* which matrix kernels are written for */
    int matrix_size;
    bool matrix_halfs;
    int units; /* compute units */
    VkPhysicalDeviceMemoryProperties memory;
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget; /* zeros without the extension */
    bool memory_budget;                               /* VK_EXT_memory_budget */
    int queue_family;                                 /* -1: none computes */
    uint32_t clock_bits;
} device_facts;

/* Extensions of Vulkan 1.2 that later became part of it; drivers list them under either version. */
typedef struct extension_set {
    VkExtensionProperties *list;
    uint32_t count;
} extension_set;

static extension_set extensions_read(const vulkan_instance *instance, VkPhysicalDevice physical) {
    extension_set e = {.list = NULL};
    if (instance->vkEnumerateDeviceExtensionProperties(physical, NULL, &e.count, NULL) != VK_SUCCESS) e.count = 0;
    e.list = memory_new(e.count + 1, sizeof *e.list);
    if (e.count && instance->vkEnumerateDeviceExtensionProperties(physical, NULL, &e.count, e.list) < VK_SUCCESS) e.count = 0;
    return e;
}

static bool extension_listed(const extension_set *e, const char *name) {
    for (uint32_t i = 0; i < e->count; i++)
        if (strcmp(e->list[i].extensionName, name) == 0) return true;
    return false;
}

/* The size of square matrix fragments with half-float operands and sums of that type, shared by a subgroup; 0: none. */
static int matrix_size(const vulkan_instance *instance, VkPhysicalDevice physical, VkComponentTypeKHR sums) {
    enum { MOST_SHAPES = 64 };
    PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR get;
    PFN_vkVoidFunction function = instance->vkGetInstanceProcAddr(instance->handle, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    memcpy(&get, &function, sizeof get);
    VkCooperativeMatrixPropertiesKHR list[MOST_SHAPES];
    for (int i = 0; i < MOST_SHAPES; i++)
        list[i] = (VkCooperativeMatrixPropertiesKHR){.sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR};
    uint32_t count = MOST_SHAPES, best = 0;
    if (!get || get(physical, &count, list) < VK_SUCCESS) return 0;
    for (uint32_t i = 0; i < count; i++) {
        const VkCooperativeMatrixPropertiesKHR *m = &list[i];
        bool square = m->MSize == m->NSize && m->NSize == m->KSize && (m->MSize == 8 || m->MSize == 16);
        if (square && m->MSize > best && m->scope == VK_SCOPE_SUBGROUP_KHR && !m->saturatingAccumulation &&
            m->AType == VK_COMPONENT_TYPE_FLOAT16_KHR && m->BType == VK_COMPONENT_TYPE_FLOAT16_KHR && m->CType == sums &&
            m->ResultType == sums)
            best = m->MSize;
    }
    return (int)best;
}

/* How many compute units, in the words of the vendors; 0: the driver does not say. */
static int units_read(const vulkan_instance *instance, VkPhysicalDevice physical, const extension_set *e) {
    VkPhysicalDeviceShaderCoreProperties2AMD amd = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_PROPERTIES_2_AMD};
    VkPhysicalDeviceShaderSMBuiltinsPropertiesNV nv = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SM_BUILTINS_PROPERTIES_NV};
    VkPhysicalDeviceShaderCoreBuiltinsPropertiesARM arm = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_BUILTINS_PROPERTIES_ARM};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    if (extension_listed(e, VK_AMD_SHADER_CORE_PROPERTIES_2_EXTENSION_NAME)) amd.pNext = properties.pNext, properties.pNext = &amd;
    if (extension_listed(e, VK_NV_SHADER_SM_BUILTINS_EXTENSION_NAME)) nv.pNext = properties.pNext, properties.pNext = &nv;
    if (extension_listed(e, VK_ARM_SHADER_CORE_BUILTINS_EXTENSION_NAME)) arm.pNext = properties.pNext, properties.pNext = &arm;
    instance->vkGetPhysicalDeviceProperties2(physical, &properties);
    return (int)(amd.activeComputeUnitCount + nv.shaderSMCount + arm.shaderCoreCount);
}

/* What optional extensions say. */
static void facts_read_extensions(const vulkan_instance *instance, VkPhysicalDevice physical, device_facts *f) {
    extension_set e = extensions_read(instance, physical);
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
    f->subgroup_sizes.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES;
    f->subgroup_control.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES;
    f->integer_dot.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES;
    if (extension_listed(&e, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME)) {
        f->subgroup_sizes.pNext = properties.pNext, properties.pNext = &f->subgroup_sizes;
        features.pNext = &f->subgroup_control;
    }
    if (extension_listed(&e, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME))
        f->integer_dot.pNext = properties.pNext, properties.pNext = &f->integer_dot;
    f->memory_budget = extension_listed(&e, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    bool matrices = extension_listed(&e, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME);
    f->memory_model.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES;
    f->matrix.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR;
    if (matrices) {
        f->memory_model.pNext = features.pNext, features.pNext = &f->memory_model;
        f->matrix.pNext = features.pNext, features.pNext = &f->matrix;
    }
    instance->vkGetPhysicalDeviceProperties2(physical, &properties);
    instance->vkGetPhysicalDeviceFeatures2(physical, &features);
    f->subgroup_sizes.pNext = f->integer_dot.pNext = f->memory_model.pNext = f->matrix.pNext = NULL;
    if (matrices && f->matrix.cooperativeMatrix) {
        f->matrix_size = matrix_size(instance, physical, VK_COMPONENT_TYPE_FLOAT32_KHR);
        f->matrix_halfs = matrix_size(instance, physical, VK_COMPONENT_TYPE_FLOAT16_KHR) == f->matrix_size;
    }
    f->units = units_read(instance, physical, &e);
    free(e.list);
}

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
    facts_read_extensions(instance, physical, f);
    if (f->memory_budget) gpu_budget(instance, physical, &f->budget);

    VkQueueFamilyProperties families[32];
    uint32_t count = 32;
    instance->vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, families);
    f->queue_family = -1;
    for (uint32_t i = 0; i < count && f->queue_family < 0; i++) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT)) continue;
        f->queue_family = (int)i;
        f->clock_bits = families[i].timestampValidBits;
    }
}

/* All kernels are workgroups along x. */
static uint32_t group_threads(const VkPhysicalDeviceLimits *l) {
    return l->maxComputeWorkGroupSize[0] < l->maxComputeWorkGroupInvocations ? l->maxComputeWorkGroupSize[0]
                                                                             : l->maxComputeWorkGroupInvocations;
}

static bool has_memory_type(const device_facts *f, VkMemoryPropertyFlags wanted) {
    for (uint32_t i = 0; i < f->memory.memoryTypeCount; i++)
        if ((f->memory.memoryTypes[i].propertyFlags & wanted) == wanted) return true;
    return false;
}

/* Limits of a device with what the kernels cannot do without. */
typedef struct need {
    const char *what, *limit;
    uint64_t has, needs;
} need;

/* Why the engine cannot run there, or an empty text. */
static void facts_judge(const device_facts *f, char *out, size_t size) {
    const VkPhysicalDeviceProperties *p = &f->properties.properties;
    const VkPhysicalDeviceLimits *l = &p->limits;
    const need needs[] = {
        {"bytes of shared memory", "maxComputeSharedMemorySize", l->maxComputeSharedMemorySize, SHARED_BYTES_NEEDED},
        {"threads in a workgroup", "maxComputeWorkGroupInvocations, maxComputeWorkGroupSize", group_threads(l), GROUP_THREADS_NEEDED},
        {"bytes of push constants", "maxPushConstantsSize", l->maxPushConstantsSize, GPU_PUSH_BYTES},
        {"storage buffers in a shader", "maxPerStageDescriptorStorageBuffers", l->maxPerStageDescriptorStorageBuffers, GPU_BINDINGS},
        {"storage buffers in a set", "maxDescriptorSetStorageBuffers", l->maxDescriptorSetStorageBuffers, GPU_BINDINGS}};
    *out = 0;
    if (p->apiVersion < VK_API_VERSION_1_2)
        snprintf(out, size, "Vulkan %u.%u, 1.2 is needed: update the driver", VK_API_VERSION_MAJOR(p->apiVersion),
                 VK_API_VERSION_MINOR(p->apiVersion));
    else if (f->queue_family < 0)
        snprintf(out, size, "no compute queue");
    else if (!has_memory_type(f, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT) || !has_memory_type(f, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT))
        snprintf(out, size, "no memory that it and the processor can reach");
    for (size_t i = 0; i < sizeof needs / sizeof *needs && !*out; i++)
        if (needs[i].has < needs[i].needs)
            snprintf(out, size, "%llu %s (%s), %llu are needed", (unsigned long long)needs[i].has, needs[i].what, needs[i].limit,
                     (unsigned long long)needs[i].needs);
}

static bool can_choose_subgroup(const device_facts *f) {
    return f->subgroup_control.subgroupSizeControl && (f->subgroup_sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0;
}

/* AMD's GCN has waves of 64 only; RDNA 3 is the first to multiply bytes of mixed signs, and issues two fp32 operations at once instead. */
static bool has_mixed_fma(const device_facts *f) {
    const uint32_t amd = 0x1002;
    return f->properties.properties.vendorID == amd && can_choose_subgroup(f) && f->subgroup_sizes.minSubgroupSize == 32 &&
           !f->integer_dot.integerDotProduct4x8BitPackedMixedSignednessAccelerated;
}

/* Matrix kernels ask for whole subgroups of one size. */
static int usable_matrix_size(const device_facts *f) {
    bool usable = can_choose_subgroup(f) && f->subgroup_control.computeFullSubgroups && f->float16.shaderFloat16 &&
                  f->memory_model.vulkanMemoryModel && f->storage16.storageBuffer16BitAccess;
    return usable ? f->matrix_size : 0;
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
        bool reached = !info->discrete || (heap->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0;
        if (!reached || heap->size <= info->memory_bytes) continue;
        info->memory_bytes = heap->size;
        info->memory_free = f->budget.heapBudget[i] > f->budget.heapUsage[i] ? f->budget.heapBudget[i] - f->budget.heapUsage[i] : 0;
    }
    info->fp16_storage = f->storage16.storageBuffer16BitAccess;
    info->fp16_math = f->float16.shaderFloat16;
    info->small_kernels = info->software && !getenv("VULORA_VK_LARGE_KERNELS");
    info->mixed_fma = has_mixed_fma(f);
    info->matrix_size = usable_matrix_size(f);
    info->matrix_halfs = f->matrix_halfs;
    info->units = f->units;
    info->subgroup_size = info->subgroup_least = info->subgroup_most = (int)f->subgroup.subgroupSize;
    if (can_choose_subgroup(f)) {
        info->subgroup_least = (int)f->subgroup_sizes.minSubgroupSize;
        info->subgroup_most = (int)f->subgroup_sizes.maxSubgroupSize;
    }
    info->shuffles = (f->subgroup.supportedOperations & VK_SUBGROUP_FEATURE_SHUFFLE_BIT) != 0 &&
                     (f->subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0 && info->subgroup_least >= 8;
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

/* The slowest that have a driver for Vulkan 1.2, at the share of their peak that kernels reach: integrated graphics with a dozen units,
   cards with four hundred lanes and 40 GB/s, a laptop's processor. */
static gpu_pace pace_of(const gpu_info *info) {
    static const gpu_pace card = {2.5e11, 2e10, 0.25}, integrated = {3e10, 4e9, 0.25}, processor = {2e9, 1e9, 10};
    return info->software ? processor : info->discrete ? card : integrated;
}

static void limits_read(const device_facts *f, gpu_limits *limits) {
    const VkPhysicalDeviceLimits *l = &f->properties.properties.limits;
    VkDeviceSize alignment = l->minStorageBufferOffsetAlignment;
    limits->offset_alignment = alignment < 16 ? 16 : (size_t)alignment; /* kernels load 16 bytes at a time */
    limits->range_bytes = l->maxStorageBufferRange;
    limits->allocation_bytes = (size_t)f->maintenance.maxMemoryAllocationSize / 16 * 16; /* as buffers are */
    limits->shared_bytes = l->maxComputeSharedMemorySize;
    limits->group_threads = group_threads(l);
    limits->push_bytes = GPU_PUSH_BYTES;
    memcpy(limits->groups, l->maxComputeWorkGroupCount, sizeof limits->groups);
}

/* What is switched on: only what kernels of this build use. */
typedef struct device_features {
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroup;
    VkPhysicalDeviceShaderFloat16Int8Features float16;
    VkPhysicalDeviceVulkanMemoryModelFeatures memory_model;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix;
    const char *extensions[2];
    uint32_t extension_count;
} device_features;

static void features_choose(const device_facts *f, device_features *out) {
    memset(out, 0, sizeof *out);
    out->storage16 = (VkPhysicalDevice16BitStorageFeatures){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES,
                                                            .storageBuffer16BitAccess = f->storage16.storageBuffer16BitAccess};
    if (!can_choose_subgroup(f)) return;
    out->extensions[out->extension_count++] = VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME;
    out->subgroup = (VkPhysicalDeviceSubgroupSizeControlFeatures){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES,
                                                                  .subgroupSizeControl = VK_TRUE,
                                                                  .computeFullSubgroups = f->subgroup_control.computeFullSubgroups};
    out->storage16.pNext = &out->subgroup;
    if (!usable_matrix_size(f)) return;
    out->extensions[out->extension_count++] = VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME;
    out->matrix = (VkPhysicalDeviceCooperativeMatrixFeaturesKHR){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR,
                                                                 .cooperativeMatrix = VK_TRUE};
    out->memory_model = (VkPhysicalDeviceVulkanMemoryModelFeatures){
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, .pNext = &out->matrix, .vulkanMemoryModel = VK_TRUE};
    out->float16 = (VkPhysicalDeviceShaderFloat16Int8Features){
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES, .pNext = &out->memory_model, .shaderFloat16 = VK_TRUE};
    out->subgroup.pNext = &out->float16;
}

static bool device_create(gpu *g, const device_facts *f, error *err) {
    const float priority = 1;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = (uint32_t)f->queue_family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    device_features features;
    features_choose(f, &features);
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &features.storage16,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue,
                               .enabledExtensionCount = features.extension_count,
                               .ppEnabledExtensionNames = features.extensions};
    g->subgroup_control = can_choose_subgroup(f);
    g->full_subgroups = g->subgroup_control && f->subgroup_control.computeFullSubgroups;
    VkResult result = g->instance->vkCreateDevice(g->physical, &info, NULL, &g->device);
    if (result != VK_SUCCESS) {
        g->device = VK_NULL_HANDLE;
        return gpu_fail(g, result, "opening the device", err);
    }
    vulkan_load_device(g->instance, g->device, &g->vk);
    g->vk.vkGetDeviceQueue(g->device, (uint32_t)f->queue_family, 0, &g->queue);
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = (uint32_t)f->queue_family};
    result = g->vk.vkCreateCommandPool(g->device, &pool, NULL, &g->transfers);
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
    g->memory_budget = facts.memory_budget;
    g->queue_family = (uint32_t)facts.queue_family;
    g->pace = pace_of(&g->info);
    uint32_t bits = facts.clock_bits;
    g->tick_mask = bits < 64 ? ((uint64_t)1 << bits) - 1 : UINT64_MAX;
    g->tick_s = bits ? 1e-9 * (double)facts.properties.properties.limits.timestampPeriod : 0;
    return device_create(g, &facts, err) && gpu_memory_open(g, err) && gpu_pipelines_open(g, err);
}

gpu *gpu_open(int index, error *err) {
    gpu *g = memory_new(1, sizeof *g);
    if (open_index(g, index, err)) return g;
    gpu_close(g);
    return NULL;
}

void gpu_close(gpu *g) {
    if (!g) return;
    if (g->state == GPU_HANGS) return; /* it may still be at work: nothing of it can be taken down */
    if (g->device) {
        g->vk.vkDeviceWaitIdle(g->device);
        gpu_pipelines_close(g);
        gpu_memory_close(g);
        g->vk.vkDestroyCommandPool(g->device, g->transfers, NULL);
        for (int i = 0; i < g->fence_count; i++) g->vk.vkDestroyFence(g->device, g->fences[i], NULL);
        g->vk.vkDestroyDevice(g->device, NULL);
    }
    free(g->fences);
    free(g);
}

bool gpu_usable(const gpu *g) { return g->state == GPU_WORKS; }
const gpu_info *gpu_get_info(const gpu *g) { return &g->info; }
const gpu_limits *gpu_get_limits(const gpu *g) { return &g->limits; }
