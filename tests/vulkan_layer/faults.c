/* Work that fails on demand, and a record of what was asked for: at the end of the process it is written to the file that
   VULORA_TEST_LAYER_LOG names, "name value" lines. */
#include "tests/vulkan_layer/layer.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_ALLOCATIONS = 1 << 14, MOST_PIPELINES = 256 };

static struct {
    int64_t submits, waits, allocations, bytes, most_bytes, largest_allocation, longest_wait_s;
    atomic_llong pipelines, building, most_building, pipeline_us;
} seen;

static struct {
    VkDeviceMemory memory;
    VkDeviceSize bytes;
} live[MOST_ALLOCATIONS];

static __attribute__((destructor)) void write_log(void) {
    const char *path = getenv("VULORA_TEST_LAYER_LOG");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "submits %" PRId64 "\nwaits %" PRId64 "\nlongest_wait_s %" PRId64 "\n", seen.submits, seen.waits, seen.longest_wait_s);
    fprintf(file, "allocations %" PRId64 "\nlargest_allocation %" PRId64 "\nmost_bytes %" PRId64 "\n", seen.allocations,
            seen.largest_allocation, seen.most_bytes);
    fprintf(file, "pipelines %lld\nmost_building %lld\npipeline_us %lld\n", atomic_load(&seen.pipelines), atomic_load(&seen.most_building),
            atomic_load(&seen.pipeline_us));
    fclose(file);
}

/* Whether a count has reached the one where things begin to fail. */
static bool begins(int64_t count, int64_t at) { return at >= 0 && count >= at; }

/* ---- memory ---- */

static void note_allocation(VkDeviceMemory memory, VkDeviceSize bytes) {
    for (size_t i = 0; i < MOST_ALLOCATIONS; i++) {
        if (live[i].bytes) continue;
        live[i].memory = memory;
        live[i].bytes = bytes;
        seen.bytes += (int64_t)bytes;
        break;
    }
    if (seen.bytes > seen.most_bytes) seen.most_bytes = seen.bytes;
    if ((int64_t)bytes > seen.largest_allocation) seen.largest_allocation = (int64_t)bytes;
}

VKAPI_ATTR VkResult VKAPI_CALL layer_vkAllocateMemory(VkDevice device, const VkMemoryAllocateInfo *info,
                                                      const VkAllocationCallbacks *allocator, VkDeviceMemory *memory) {
    VkMemoryAllocateInfo own = *info;
    bool full = layer_pretended.most_memory >= 0 && seen.bytes + (int64_t)info->allocationSize > layer_pretended.most_memory;
    if (begins(++seen.allocations, layer_pretended.no_memory) || full) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    if (layer_pretended.separate > 0 || layer_pretended.carved > 0) own.memoryTypeIndex = 0; /* the only one there is */
    VkResult result = layer_below.vkAllocateMemory(device, &own, allocator, memory);
    if (result == VK_SUCCESS) note_allocation(*memory, info->allocationSize);
    return result;
}

VKAPI_ATTR void VKAPI_CALL layer_vkFreeMemory(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks *allocator) {
    for (size_t i = 0; memory && i < MOST_ALLOCATIONS; i++) {
        if (!live[i].bytes || live[i].memory != memory) continue;
        seen.bytes -= (int64_t)live[i].bytes;
        live[i].bytes = 0;
        break;
    }
    layer_below.vkFreeMemory(device, memory, allocator);
}

/* ---- work ---- */

VKAPI_ATTR VkResult VKAPI_CALL layer_vkQueueSubmit(VkQueue queue, uint32_t count, const VkSubmitInfo *submits, VkFence fence) {
    seen.submits++;
    if (begins(seen.submits, layer_pretended.lost_submit) || begins(seen.waits, layer_pretended.lost_wait)) return VK_ERROR_DEVICE_LOST;
    return layer_below.vkQueueSubmit(queue, count, submits, fence);
}

/* What was submitted is done in truth, so that nothing is torn down under the driver's hands. */
VKAPI_ATTR VkResult VKAPI_CALL layer_vkWaitForFences(VkDevice device, uint32_t count, const VkFence *fences, VkBool32 all,
                                                     uint64_t timeout) {
    int64_t seconds = (int64_t)(timeout / 1000000000u);
    seen.waits++;
    if (seconds > seen.longest_wait_s) seen.longest_wait_s = seconds;
    VkResult result = layer_below.vkWaitForFences(device, count, fences, all, timeout);
    if (begins(seen.submits, layer_pretended.lost_submit) || begins(seen.waits, layer_pretended.lost_wait)) return VK_ERROR_DEVICE_LOST;
    return begins(seen.waits, layer_pretended.stuck_wait) ? VK_TIMEOUT : result;
}

/* ---- pipelines ---- */

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* The driver never hears of subgroup sizes that it does not have. */
static VkComputePipelineCreateInfo without_subgroup_size(const VkComputePipelineCreateInfo *info) {
    VkComputePipelineCreateInfo own = *info;
    if (layer_pretended.subgroup < 0 && layer_pretended.subgroup_least < 0 && layer_pretended.subgroup_most < 0) return own;
    own.stage.pNext = NULL;
    own.stage.flags = 0;
    return own;
}

static void note_building(void) {
    long long building = atomic_fetch_add(&seen.building, 1) + 1, most = atomic_load(&seen.most_building);
    while (building > most && !atomic_compare_exchange_weak(&seen.most_building, &most, building)) continue;
}

VKAPI_ATTR VkResult VKAPI_CALL layer_vkCreateComputePipelines(VkDevice device, VkPipelineCache cache, uint32_t count,
                                                              const VkComputePipelineCreateInfo *infos,
                                                              const VkAllocationCallbacks *allocator, VkPipeline *out) {
    VkComputePipelineCreateInfo own[MOST_PIPELINES];
    if (count > MOST_PIPELINES || atomic_fetch_add(&seen.pipelines, count) + 1 == layer_pretended.bad_pipeline)
        return VK_ERROR_INITIALIZATION_FAILED;
    for (uint32_t i = 0; i < count; i++) own[i] = without_subgroup_size(&infos[i]);
    long long start = now_us();
    note_building();
    VkResult result = layer_below.vkCreateComputePipelines(device, cache, count, own, allocator, out);
    atomic_fetch_sub(&seen.building, 1);
    atomic_fetch_add(&seen.pipeline_us, now_us() - start);
    return result;
}
