/* A card that is not there: the driver compiles for it and tells what came out (VK_KHR_pipeline_executable_properties). */
#include "bench/gpu_static/gpu_static.h"

#include "base/memory.h"
#include "vulkan/matrix.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_STATISTICS = 64, MOST_TEXTS = 8 };

#define FUNCTIONS(F) \
    F(vkGetPipelineExecutablePropertiesKHR) \
    F(vkGetPipelineExecutableStatisticsKHR) \
    F(vkGetPipelineExecutableInternalRepresentationsKHR)

#define DECLARE(name) PFN_##name name;
struct null_device {
    gpu engine; /* as the engine would have opened it, as far as recording goes: it cannot itself, for a null device runs nothing */
    FUNCTIONS(DECLARE)
};
#undef DECLARE

static VkResult device_create(gpu *g) {
    const float priority = 1;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &priority};
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR inspect = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR, .pipelineExecutableInfo = VK_TRUE};
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroup = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES, .pNext = &inspect, .subgroupSizeControl = VK_TRUE};
    const char *const extensions[] = {VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME,
                                      VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME};
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &subgroup,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue,
                               .enabledExtensionCount = g->info.matrix_size ? 3 : 2,
                               .ppEnabledExtensionNames = extensions};
    return g->instance->vkCreateDevice(g->physical, &info, NULL, &g->device);
}

static VkResult layout_create(gpu *g) {
    VkDescriptorSetLayoutBinding bindings[GPU_BINDINGS];
    for (uint32_t i = 0; i < GPU_BINDINGS; i++)
        bindings[i] = (VkDescriptorSetLayoutBinding){i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, NULL};
    VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = GPU_BINDINGS, .pBindings = bindings};
    VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, GPU_PUSH_BYTES};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .setLayoutCount = 1,
                                         .pSetLayouts = &g->bindings,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &push};
    VkResult result = g->vk.vkCreateDescriptorSetLayout(g->device, &set, NULL, &g->bindings);
    return result == VK_SUCCESS ? g->vk.vkCreatePipelineLayout(g->device, &layout, NULL, &g->layout) : result;
}

null_device *null_device_open(void) {
    null_device *d = memory_new(1, sizeof *d);
    gpu *g = &d->engine;
    uint32_t count = 1;
    g->instance = vulkan_instance_get();
    g->subgroup_control = true;
    g->limits = (gpu_limits){.offset_alignment = 16,
                             .range_bytes = UINT32_MAX,
                             .allocation_bytes = UINT32_MAX,
                             .shared_bytes = 65536,
                             .group_threads = 1024,
                             .groups = {65535, 65535, 65535}};
    if (gpu_list(&g->info, 1) > 0 && g->instance->vkEnumeratePhysicalDevices(g->instance->handle, &count, &g->physical) >= VK_SUCCESS &&
        device_create(g) == VK_SUCCESS) {
        vulkan_load_device(g->instance, g->device, &g->vk);
#define LOAD(name) d->name = (PFN_##name)g->instance->vkGetDeviceProcAddr(g->device, #name);
        FUNCTIONS(LOAD)
#undef LOAD
        if (layout_create(g) == VK_SUCCESS) return d;
    }
    null_device_close(d);
    return NULL;
}

void null_device_close(null_device *d) {
    gpu *g = &d->engine;
    for (int i = 0; i < g->pipeline_count; i++) free(g->pipelines[i]);
    free(g->pipelines);
    if (g->device) {
        g->vk.vkDestroyPipelineLayout(g->device, g->layout, NULL);
        g->vk.vkDestroyDescriptorSetLayout(g->device, g->bindings, NULL);
        g->vk.vkDestroyDevice(g->device, NULL);
    }
    free(d);
}

gpu *null_device_engine(null_device *d) { return &d->engine; }

/* Threads in a workgroup, from the code: constants with a SpecId take the pipeline's value. */
static uint32_t group_threads(const gpu_shader *shader, const gpu_pipeline *p) {
    enum {
        DECORATE = 71,
        CONSTANT = 43,
        SPEC_CONSTANT = 50,
        EXECUTION_MODE = 16,
        EXECUTION_MODE_ID = 331,
        SPEC_ID = 1,
        SIZE = 17,
        SIZE_ID = 38
    };
    const uint32_t *code = shader->code, bound = code[3];
    size_t words = shader->bytes / 4;
    uint32_t *value = memory_new(bound, sizeof *value), *spec = memory_new(bound, sizeof *spec), size = 1;
    const uint32_t *size_ids = NULL;
    for (size_t i = 5; i < words; i += code[i] >> 16) {
        const uint32_t *w = &code[i];
        uint32_t op = w[0] & 0xffff;
        if (op == DECORATE && w[2] == SPEC_ID) spec[w[1]] = w[3] + 1;
        if (op == CONSTANT || op == SPEC_CONSTANT) value[w[2]] = w[3];
        if (op == EXECUTION_MODE && w[2] == SIZE) size = w[3] * w[4] * w[5];
        if (op == EXECUTION_MODE_ID && w[2] == SIZE_ID) size_ids = &w[3];
        if ((op == 44 || op == 51) && w[0] >> 16 == 6 && size == 1) size_ids = &w[3]; /* a composite of three: the WorkgroupSize constant */
    }
    if (size_ids && size == 1)
        for (int i = 0; i < 3; i++) {
            uint32_t id = size_ids[i];
            size *= spec[id] && (int)spec[id] <= p->constant_count ? p->constants[spec[id] - 1] : value[id];
        }
    free(value);
    free(spec);
    return size;
}

static VkResult pipeline_create(null_device *d, const gpu_pipeline *p, const gpu_shader *shader, VkPipeline *out) {
    VkShaderModuleCreateInfo code = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = shader->bytes, .pCode = shader->code};
    VkShaderModule module;
    VkResult result = d->engine.vk.vkCreateShaderModule(d->engine.device, &code, NULL, &module);
    if (result != VK_SUCCESS) return result;
    VkSpecializationMapEntry entries[GPU_CONSTANTS];
    for (uint32_t i = 0; i < GPU_CONSTANTS; i++)
        entries[i] = (VkSpecializationMapEntry){i, (uint32_t)(i * sizeof(uint32_t)), sizeof(uint32_t)};
    VkSpecializationInfo constants = {(uint32_t)p->constant_count, entries, (size_t)p->constant_count * sizeof(uint32_t), p->constants};
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo subgroup = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO, .requiredSubgroupSize = (uint32_t)p->subgroup};
    VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                        .flags = VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR |
                                                 VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR,
                                        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                  .pNext = p->subgroup ? &subgroup : NULL,
                                                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                  .module = module,
                                                  .pName = "main",
                                                  .pSpecializationInfo = &constants},
                                        .layout = d->engine.layout};
    result = d->engine.vk.vkCreateComputePipelines(d->engine.device, VK_NULL_HANDLE, 1, &info, NULL, out);
    d->engine.vk.vkDestroyShaderModule(d->engine.device, module, NULL);
    return result;
}

static void read_statistics(null_device *d, VkPipeline pipeline, compiled *out) {
    const struct {
        const char *name;
        int *value;
    } wanted[] = {
        {"VGPRs", &out->registers}, {"Spilled VGPRs", &out->spills}, {"LDS size", &out->shared}, {"Subgroups per SIMD", &out->waves}};
    VkPipelineExecutableInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, .pipeline = pipeline};
    VkPipelineExecutableStatisticKHR list[MOST_STATISTICS];
    memset(list, 0, sizeof list);
    for (int i = 0; i < MOST_STATISTICS; i++) list[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR;
    uint32_t count = MOST_STATISTICS;
    d->vkGetPipelineExecutableStatisticsKHR(d->engine.device, &which, &count, list);
    for (uint32_t i = 0; i < count; i++)
        for (size_t k = 0; k < sizeof wanted / sizeof *wanted; k++)
            if (strcmp(list[i].name, wanted[k].name) == 0) *wanted[k].value = (int)list[i].value.u64;
}

static char *read_text(null_device *d, VkPipeline pipeline) {
    VkPipelineExecutableInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, .pipeline = pipeline};
    VkPipelineExecutableInternalRepresentationKHR list[MOST_TEXTS];
    memset(list, 0, sizeof list);
    for (int i = 0; i < MOST_TEXTS; i++) list[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR;
    uint32_t count = MOST_TEXTS;
    d->vkGetPipelineExecutableInternalRepresentationsKHR(d->engine.device, &which, &count, list);
    for (uint32_t i = 0; i < count; i++) list[i].pData = memory_new(1, list[i].dataSize + 1);
    d->vkGetPipelineExecutableInternalRepresentationsKHR(d->engine.device, &which, &count, list);
    char *text = NULL;
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(list[i].name, "Assembly") == 0)
            text = list[i].pData;
        else
            free(list[i].pData);
    }
    return text;
}

bool null_device_compile(null_device *d, const gpu_pipeline *p, const gpu_shader *shader, compiled *out) {
    memset(out, 0, sizeof *out);
    VkPipeline pipeline;
    if (pipeline_create(d, p, shader, &pipeline) != VK_SUCCESS) return false;
    VkPipelineInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
    VkPipelineExecutablePropertiesKHR properties = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
    uint32_t count = 1;
    d->vkGetPipelineExecutablePropertiesKHR(d->engine.device, &which, &count, &properties);
    out->wave = (int)properties.subgroupSize;
    read_statistics(d, pipeline, out);
    out->text = read_text(d, pipeline);
    out->group = (int)((group_threads(shader, p) + properties.subgroupSize - 1) / properties.subgroupSize);
    d->engine.vk.vkDestroyPipeline(d->engine.device, pipeline, NULL);
    return true;
}
