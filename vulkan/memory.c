/* Device memory, and the buffers in it. */
#include "vulkan/internal.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int memory_type(const gpu *g, uint32_t allowed, VkMemoryPropertyFlags wanted) {
    for (uint32_t i = 0; i < g->memory.memoryTypeCount; i++)
        if ((allowed >> i & 1) && (g->memory.memoryTypes[i].propertyFlags & wanted) == wanted) return (int)i;
    return -1;
}

static const VkMemoryPropertyFlags host_visible = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;

/* Integrated graphics and software devices share the host's memory: their buffers stay mapped. The far side of a bus is never read
   directly. VULORA_VK_STAGING=1 treats every device like a card, for tests. */
static bool memory_is_shared(const gpu *g) {
    const char *staging = getenv("VULORA_VK_STAGING");
    if (g->info.discrete || (staging && strcmp(staging, "1") == 0)) return false;
    return memory_type(g, ~0u, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | host_visible) >= 0;
}

/* ---- allocations ---- */

static uint32_t heap_of(const gpu *g, int type) { return g->memory.memoryTypes[type].heapIndex; }

static VkResult memory_allocate(gpu *g, int type, size_t bytes, bool map, gpu_memory **out) {
    gpu_memory *m = memory_new(1, sizeof *m);
    m->type = type;
    m->bytes = bytes;
    VkMemoryAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = bytes, .memoryTypeIndex = (uint32_t)type};
    VkResult result = g->vk.vkAllocateMemory(g->device, &info, NULL, &m->handle);
    if (result == VK_SUCCESS && map) {
        result = g->vk.vkMapMemory(g->device, m->handle, 0, VK_WHOLE_SIZE, 0, &m->host);
        if (result != VK_SUCCESS) g->vk.vkFreeMemory(g->device, m->handle, NULL);
    }
    if (result != VK_SUCCESS) {
        free(m);
        return result;
    }
    g->allocated[heap_of(g, type)] += bytes;
    *out = m;
    return result;
}

/* No allocation is larger than the device allows. */
static size_t within(const gpu *g, size_t bytes) { return bytes < g->limits.allocation_bytes ? bytes : g->limits.allocation_bytes; }

/* A share of the heap that does not hurt where it stays half empty. */
static size_t shared_bytes(const gpu *g, int type) {
    size_t share = (size_t)(g->memory.memoryHeaps[heap_of(g, type)].size / 64);
    return within(g, share < GPU_SMALL_BYTES ? GPU_SMALL_BYTES : share < GPU_SHARED_BYTES ? share : GPU_SHARED_BYTES);
}

static size_t aligned(size_t value, size_t alignment) { return (value + alignment - 1) / alignment * alignment; }

/* An allocation that small buffers share, with room for one more; NULL: a new one is needed. */
static gpu_memory *shared_with_room(const gpu *g, int type, const VkMemoryRequirements *needs) {
    for (int i = 0; i < g->shared_count; i++) {
        gpu_memory *m = g->shared[i];
        if (m->type == type && aligned(m->used, (size_t)needs->alignment) + (size_t)needs->size <= m->bytes) return m;
    }
    return NULL;
}

static VkResult memory_for(gpu *g, int type, const VkMemoryRequirements *needs, bool map, gpu_memory **out) {
    size_t bytes = (size_t)needs->size;
    if (bytes > GPU_SMALL_BYTES) return memory_allocate(g, type, bytes, map, out);
    *out = shared_with_room(g, type, needs);
    if (*out) return VK_SUCCESS;
    VkResult result = memory_allocate(g, type, shared_bytes(g, type), map, out);
    if (result != VK_SUCCESS) return memory_allocate(g, type, bytes, map, out); /* nearly full */
    g->shared = memory_grow(g->shared, (size_t)g->shared_count + 1, sizeof(gpu_memory *));
    g->shared[g->shared_count++] = *out;
    return VK_SUCCESS;
}

static void memory_release(gpu *g, gpu_memory *m) {
    if (--m->buffers > 0) return;
    for (int i = 0; i < g->shared_count; i++)
        if (g->shared[i] == m) g->shared[i--] = g->shared[--g->shared_count];
    g->vk.vkFreeMemory(g->device, m->handle, NULL);
    g->allocated[heap_of(g, m->type)] -= m->bytes;
    free(m);
}

/* ---- buffers ---- */

/* Integrated graphics reach all of the host's memory; what their firmware has set aside for them is as fast, but may be small. */
static int unified_type(const gpu *g, uint32_t allowed) {
    int best = -1;
    for (uint32_t i = 0; i < g->memory.memoryTypeCount; i++) {
        const VkMemoryType *t = &g->memory.memoryTypes[i];
        if (!(allowed >> i & 1) || (t->propertyFlags & host_visible) != host_visible) continue;
        VkDeviceSize size = g->memory.memoryHeaps[t->heapIndex].size, most = best < 0 ? 0 : g->memory.memoryHeaps[heap_of(g, best)].size;
        bool local = (t->propertyFlags & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT) != 0;
        bool best_local = best >= 0 && (g->memory.memoryTypes[best].propertyFlags & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT) != 0;
        if (best < 0 || size > most || (size == most && local && !best_local)) best = (int)i;
    }
    return best;
}

static int buffer_memory_type(const gpu *g, uint32_t allowed, bool on_host) {
    if (!on_host) return g->mapped ? unified_type(g, allowed) : memory_type(g, allowed, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
    int cached = memory_type(g, allowed, host_visible | VK_MEMORY_PROPERTY_HOST_CACHED_BIT);
    return cached >= 0 ? cached : memory_type(g, allowed, host_visible);
}

void gpu_budget(const vulkan_instance *instance, VkPhysicalDevice physical, VkPhysicalDeviceMemoryBudgetPropertiesEXT *out) {
    *out = (VkPhysicalDeviceMemoryBudgetPropertiesEXT){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 memory = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2, .pNext = out};
    instance->vkGetPhysicalDeviceMemoryProperties2(physical, &memory);
}

uint64_t gpu_memory_free(const gpu *g) {
    int type = buffer_memory_type(g, ~0u, false);
    if (type < 0) return 0;
    uint32_t heap = heap_of(g, type);
    VkDeviceSize size = g->memory.memoryHeaps[heap].size, used = g->allocated[heap];
    if (g->memory_budget) {
        VkPhysicalDeviceMemoryBudgetPropertiesEXT budget;
        gpu_budget(g->instance, g->physical, &budget);
        if (budget.heapBudget[heap] < size) size = budget.heapBudget[heap];
        used = budget.heapUsage[heap];
    }
    return size > used ? size - used : 0;
}

static VkResult buffer_allocate(gpu_buffer *b, bool on_host) {
    gpu *g = b->gpu;
    VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = b->bytes,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT,
    };
    VkResult result = g->vk.vkCreateBuffer(g->device, &info, NULL, &b->handle);
    if (result != VK_SUCCESS) return result;
    VkMemoryRequirements needs;
    g->vk.vkGetBufferMemoryRequirements(g->device, b->handle, &needs);
    int type = buffer_memory_type(g, needs.memoryTypeBits, on_host);
    if (type < 0) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    result = memory_for(g, type, &needs, on_host || g->mapped, &b->memory);
    if (result != VK_SUCCESS) return result;
    gpu_memory *m = b->memory;
    size_t offset = aligned(m->used, (size_t)needs.alignment);
    m->used = offset + (size_t)needs.size;
    m->buffers++;
    if (m->host) b->host = (char *)m->host + offset;
    return g->vk.vkBindBufferMemory(g->device, b->handle, m->handle, offset);
}

static gpu_buffer *buffer_new(gpu *g, size_t bytes, bool on_host, error *err) {
    gpu_buffer *b = memory_new(1, sizeof *b);
    b->gpu = g;
    b->bytes = (bytes + 15) / 16 * 16; /* kernels load 16 bytes at a time */
    if (b->bytes == 0) b->bytes = 16;
    if (b->bytes > g->limits.allocation_bytes) {
        error_set(err, "%s: %.1f MiB of memory at once, the device allocates at most %.1f MiB; use a smaller batch or resolution",
                  g->info.name, (double)b->bytes / (1 << 20), (double)g->limits.allocation_bytes / (1 << 20));
        gpu_buffer_free(b);
        return NULL;
    }
    VkResult result = buffer_allocate(b, on_host);
    if (result != VK_SUCCESS) {
        char what[64];
        snprintf(what, sizeof what, "allocating %.1f MiB", (double)b->bytes / (1 << 20));
        gpu_fail(g, result, what, err);
        gpu_buffer_free(b);
        return NULL;
    }
    return b;
}

gpu_buffer *gpu_buffer_create(gpu *g, size_t bytes, error *err) {
    gpu_buffer *b = buffer_new(g, bytes, false, err);
    if (b && !gpu_zero(b, err)) {
        gpu_buffer_free(b);
        return NULL;
    }
    return b;
}

void gpu_buffer_free(gpu_buffer *b) {
    if (!b) return;
    gpu_flush(b->gpu, NULL); /* what is still to be copied there */
    if (b->gpu->state != GPU_HANGS) {
        b->gpu->vk.vkDestroyBuffer(b->gpu->device, b->handle, NULL);
        if (b->memory) memory_release(b->gpu, b->memory);
    }
    free(b);
}

bool gpu_memory_open(gpu *g, error *err) {
    g->mapped = memory_is_shared(g);
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = g->transfers,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = 1};
    VkResult result = g->vk.vkAllocateCommandBuffers(g->device, &info, &g->transfer);
    if (result != VK_SUCCESS) return gpu_fail(g, result, "opening the device", err);
    if (g->mapped) return true;
    g->staging = buffer_new(g, within(g, GPU_STAGING_BYTES), true, err);
    return g->staging != NULL;
}

void gpu_memory_close(gpu *g) {
    gpu_buffer_free(g->staging);
    g->staging = NULL;
    free(g->shared);
}
