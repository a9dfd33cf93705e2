/* Pipelines: one per shader, set of specialization constants and subgroup size, built several at a time. */
#include "vulkan/internal.h"

#include "base/memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_BUILDERS = 8 };

bool gpu_pipelines_open(gpu *g, error *err) {
    VkDescriptorSetLayoutBinding bindings[GPU_BINDINGS];
    for (uint32_t i = 0; i < GPU_BINDINGS; i++)
        bindings[i] = (VkDescriptorSetLayoutBinding){i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, NULL};
    VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = GPU_BINDINGS, .pBindings = bindings};
    VkResult result = g->vk.vkCreateDescriptorSetLayout(g->device, &set, NULL, &g->bindings);
    VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, GPU_PUSH_BYTES};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .setLayoutCount = 1,
                                         .pSetLayouts = &g->bindings,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &push};
    if (result == VK_SUCCESS) result = g->vk.vkCreatePipelineLayout(g->device, &layout, NULL, &g->layout);
    if (result == VK_SUCCESS) result = gpu_cache_open(g);
    return result == VK_SUCCESS || gpu_fail(g, result, "preparing pipelines", err);
}

void gpu_pipelines_close(gpu *g) {
    gpu_cache_save(g);
    for (int i = 0; i < g->pipeline_count; i++) {
        g->vk.vkDestroyPipeline(g->device, g->pipelines[i]->handle, NULL);
        free(g->pipelines[i]);
    }
    free(g->pipelines);
    gpu_cache_close(g);
    g->vk.vkDestroyPipelineLayout(g->device, g->layout, NULL);
    g->vk.vkDestroyDescriptorSetLayout(g->device, g->bindings, NULL);
}

const gpu_shader *gpu_shader_find(const char *name) {
    for (const gpu_shader *s = gpu_shader_table; s->name; s++)
        if (strcmp(s->name, name) == 0) return s;
    return NULL;
}

bool gpu_has_shader(const char *name) { return gpu_shader_find(name) != NULL; }

/* Whether the code uses gl_NumWorkGroups: OpDecorate with the built-in of that number. */
static bool asks_group_count(const gpu_shader *shader) {
    enum { HEADER_WORDS = 5, OP_DECORATE = 71, BUILT_IN = 11, NUM_WORKGROUPS = 24 };
    const uint32_t *code = shader->code;
    for (size_t i = HEADER_WORDS; i < shader->bytes / sizeof *code && code[i] >> 16; i += code[i] >> 16)
        if ((code[i] & 0xffff) == OP_DECORATE && code[i + 2] == BUILT_IN && code[i + 3] == NUM_WORKGROUPS) return true;
    return false;
}

gpu_pipeline *gpu_pipeline_find(gpu *g, const gpu_dispatch *d) {
    int count = d->constant_count, subgroup = g->subgroup_control ? d->subgroup : 0;
    for (int i = 0; i < g->pipeline_count; i++) {
        gpu_pipeline *p = g->pipelines[i];
        if (p->constant_count == count && p->subgroup == subgroup && strcmp(p->shader, d->shader) == 0 &&
            (count == 0 || memcmp(p->constants, d->constants, (size_t)count * sizeof *d->constants) == 0))
            return p;
    }
    const gpu_shader *found = gpu_shader_find(d->shader);
    if (!found || count > GPU_CONSTANTS) return NULL;
    gpu_pipeline *p = memory_new(1, sizeof *p);
    p->shader = found->name;
    p->whole_rows = asks_group_count(found);
    p->subgroup = subgroup;
    p->constant_count = count;
    if (count) memcpy(p->constants, d->constants, (size_t)count * sizeof *d->constants);
    g->pipelines = memory_grow(g->pipelines, (size_t)g->pipeline_count + 1, sizeof(gpu_pipeline *));
    g->pipelines[g->pipeline_count++] = p;
    return p;
}

static VkResult pipeline_build(gpu *g, gpu_pipeline *p) {
    const gpu_shader *shader = gpu_shader_find(p->shader);
    VkShaderModuleCreateInfo code = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = shader->bytes, .pCode = shader->code};
    VkShaderModule module = VK_NULL_HANDLE;
    VkResult result = g->vk.vkCreateShaderModule(g->device, &code, NULL, &module);
    if (result != VK_SUCCESS) return result;
    VkSpecializationMapEntry entries[GPU_CONSTANTS];
    for (uint32_t i = 0; i < GPU_CONSTANTS; i++)
        entries[i] = (VkSpecializationMapEntry){i, (uint32_t)(i * sizeof(uint32_t)), sizeof(uint32_t)};
    VkSpecializationInfo constants = {(uint32_t)p->constant_count, entries, (size_t)p->constant_count * sizeof(uint32_t), p->constants};
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo subgroup = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO, .requiredSubgroupSize = (uint32_t)p->subgroup};
    bool whole = p->subgroup && g->full_subgroups;
    VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                        .flags = VK_PIPELINE_CREATE_DISPATCH_BASE_BIT,
                                        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                  .pNext = p->subgroup ? &subgroup : NULL,
                                                  .flags = whole ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0,
                                                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                  .module = module,
                                                  .pName = "main",
                                                  .pSpecializationInfo = &constants},
                                        .layout = g->layout};
    result = g->vk.vkCreateComputePipelines(g->device, g->cache, 1, &info, NULL, &p->handle);
    g->vk.vkDestroyShaderModule(g->device, module, NULL);
    return result;
}

typedef struct builders {
    gpu *gpu;
    atomic_int next;
} builders;

static void *build_some(void *argument) {
    builders *b = argument;
    for (int i; (i = atomic_fetch_add(&b->next, 1)) < b->gpu->pipeline_count;) {
        gpu_pipeline *p = b->gpu->pipelines[i];
        if (!p->handle) p->result = pipeline_build(b->gpu, p);
    }
    return NULL;
}

bool gpu_pipelines_build(gpu *g, error *err) {
    int missing = 0;
    for (int i = 0; i < g->pipeline_count; i++) missing += !g->pipelines[i]->handle;
    if (missing == 0) return true;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int wanted = processors > MOST_BUILDERS ? MOST_BUILDERS : (int)processors, started = 0;
    pthread_t threads[MOST_BUILDERS];
    builders b = {.gpu = g};
    atomic_init(&b.next, 0);
    while (started < wanted - 1 && started < missing - 1 && pthread_create(&threads[started], NULL, build_some, &b) == 0) started++;
    build_some(&b);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < g->pipeline_count; i++) {
        const gpu_pipeline *p = g->pipelines[i];
        if (p->handle) continue;
        char what[128];
        snprintf(what, sizeof what, "compiling the kernel %s", p->shader);
        return gpu_fail(g, p->result, what, err);
    }
    gpu_cache_save(g); /* now: a training may end in any way */
    return true;
}
