/* Pipelines: one per shader and set of specialization constants, built several at a time; and the driver's cache of them, kept on disk. */
#include "vulkan/internal.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/sha256.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CACHE_LIMIT_BYTES = 256 << 20, DIGEST_BYTES = 64, MOST_BUILDERS = 8 };

/* The cache file: the SHA-256 of the driver's data as 64 hex digits, then that data. Drivers check their own header, but some of them
   trust the rest blindly, so a damaged file must never reach them. */
static void digest(const void *data, size_t size, char out[DIGEST_BYTES + 1]) {
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, data, size);
    sha256_hex(&hash, out);
}

static char *cache_folder(void) {
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *parent = base && *base == '/' ? memory_string(base) : home && *home == '/' ? memory_format("%s/.cache", home) : NULL;
    if (!parent) return NULL;
    char *folder = memory_format("%s/vulora", parent);
    bool there = (mkdir(parent, 0700) == 0 || errno == EEXIST) && (mkdir(folder, 0700) == 0 || errno == EEXIST);
    free(parent);
    if (there) return folder;
    free(folder);
    return NULL;
}

static char *cache_path(const VkPhysicalDeviceProperties *p) {
    char *folder = cache_folder();
    if (!folder) return NULL;
    char uuid[2 * VK_UUID_SIZE + 1];
    for (size_t i = 0; i < VK_UUID_SIZE; i++) snprintf(uuid + 2 * i, 3, "%02x", p->pipelineCacheUUID[i]);
    char *path = memory_format("%s/pipelines-%04x-%04x-%08x-%s.bin", folder, p->vendorID, p->deviceID, p->driverVersion, uuid);
    free(folder);
    return path;
}

/* The driver's data out of an intact file for this device and driver, or NULL. */
static const char *cache_data(const char *text, size_t size, const VkPhysicalDeviceProperties *p, size_t *data_size) {
    VkPipelineCacheHeaderVersionOne header;
    if (size < DIGEST_BYTES + sizeof header) return NULL;
    const char *data = text + DIGEST_BYTES;
    char want[DIGEST_BYTES + 1];
    digest(data, size - DIGEST_BYTES, want);
    memcpy(&header, data, sizeof header);
    bool ours = memcmp(want, text, DIGEST_BYTES) == 0 && header.headerVersion == VK_PIPELINE_CACHE_HEADER_VERSION_ONE &&
                header.vendorID == p->vendorID && header.deviceID == p->deviceID &&
                memcmp(header.pipelineCacheUUID, p->pipelineCacheUUID, VK_UUID_SIZE) == 0;
    *data_size = size - DIGEST_BYTES;
    return ours ? data : NULL;
}

static VkResult cache_open(gpu *g, const VkPhysicalDeviceProperties *p) {
    g->cache_path = cache_path(p);
    size_t size = 0;
    char *text = g->cache_path && file_exists(g->cache_path) ? file_read_text(g->cache_path, CACHE_LIMIT_BYTES, &size, NULL) : NULL;
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    if (text) info.pInitialData = cache_data(text, size, p, &info.initialDataSize);
    if (!info.pInitialData) info.initialDataSize = 0;
    g->cache_bytes = info.initialDataSize;
    VkResult result = g->vk.vkCreatePipelineCache(g->device, &info, NULL, &g->cache);
    free(text);
    return result;
}

/* A cache that cannot be written costs time at the next start, nothing else: no error. */
static void cache_save(gpu *g) {
    size_t size = 0;
    if (!g->cache_path || g->vk.vkGetPipelineCacheData(g->device, g->cache, &size, NULL) != VK_SUCCESS || size == g->cache_bytes) return;
    char *text = memory_try_aligned(DIGEST_BYTES + size);
    if (text && g->vk.vkGetPipelineCacheData(g->device, g->cache, &size, text + DIGEST_BYTES) == VK_SUCCESS) {
        char hex[DIGEST_BYTES + 1];
        digest(text + DIGEST_BYTES, size, hex);
        memcpy(text, hex, DIGEST_BYTES);
        file_write_all(g->cache_path, text, DIGEST_BYTES + size, NULL);
    }
    free(text);
}

bool gpu_pipelines_open(gpu *g, const VkPhysicalDeviceProperties *properties, error *err) {
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
    if (result == VK_SUCCESS) result = cache_open(g, properties);
    return result == VK_SUCCESS || gpu_fail(g, result, "preparing pipelines", err);
}

void gpu_pipelines_close(gpu *g) {
    if (g->cache) cache_save(g);
    for (int i = 0; i < g->pipeline_count; i++) {
        g->vk.vkDestroyPipeline(g->device, g->pipelines[i]->handle, NULL);
        free(g->pipelines[i]);
    }
    free(g->pipelines);
    g->vk.vkDestroyPipelineCache(g->device, g->cache, NULL);
    g->vk.vkDestroyPipelineLayout(g->device, g->layout, NULL);
    g->vk.vkDestroyDescriptorSetLayout(g->device, g->bindings, NULL);
    free(g->cache_path);
}

const gpu_shader *gpu_shader_find(const char *name) {
    for (const gpu_shader *s = gpu_shader_table; s->name; s++)
        if (strcmp(s->name, name) == 0) return s;
    return NULL;
}

bool gpu_has_shader(const char *name) { return gpu_shader_find(name) != NULL; }

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
    return true;
}
