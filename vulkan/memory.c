/* Buffers, and moving data between them and the host. */
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
    *out = m;
    if (result == VK_SUCCESS) return result;
    *out = NULL;
    free(m);
    return result;
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
    VkResult result = memory_allocate(g, type, GPU_SHARED_BYTES, map, out);
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
    free(m);
}

/* ---- buffers ---- */

static int buffer_memory_type(const gpu *g, uint32_t allowed, bool on_host) {
    VkMemoryPropertyFlags local = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
    if (!on_host) return memory_type(g, allowed, g->mapped ? local | host_visible : local);
    int cached = memory_type(g, allowed, host_visible | VK_MEMORY_PROPERTY_HOST_CACHED_BIT);
    return cached >= 0 ? cached : memory_type(g, allowed, host_visible);
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

static bool transfer_begin(gpu *g, error *err) {
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    VkResult result = g->vk.vkBeginCommandBuffer(g->transfer, &begin);
    return result == VK_SUCCESS || gpu_fail(g, result, "a transfer", err);
}

static bool transfer_end(gpu *g, error *err) {
    VkResult result = g->vk.vkEndCommandBuffer(g->transfer);
    if (result != VK_SUCCESS) return gpu_fail(g, result, "a transfer", err);
    return gpu_submit(g, &g->transfer, 1, err);
}

/* Between what ran before in this queue, the copy, and what the host or later work reads. */
static void transfer_barrier(gpu *g) {
    VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                               .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    VkPipelineStageFlags all = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT;
    g->vk.vkCmdPipelineBarrier(g->transfer, all, all, 0, 1, &barrier, 0, NULL, 0, NULL);
}

static bool buffer_zero(gpu_buffer *b, error *err) {
    gpu *g = b->gpu;
    if (b->host) {
        memset(b->host, 0, b->bytes);
        return true;
    }
    if (!transfer_begin(g, err)) return false;
    transfer_barrier(g);
    g->vk.vkCmdFillBuffer(g->transfer, b->handle, 0, VK_WHOLE_SIZE, 0);
    transfer_barrier(g);
    return transfer_end(g, err);
}

static gpu_buffer *buffer_new(gpu *g, size_t bytes, bool on_host, error *err) {
    gpu_buffer *b = memory_new(1, sizeof *b);
    b->gpu = g;
    b->bytes = (bytes + 15) / 16 * 16; /* kernels load 16 bytes at a time */
    if (b->bytes == 0) b->bytes = 16;
    VkResult result = b->bytes > g->limits.allocation_bytes ? VK_ERROR_OUT_OF_DEVICE_MEMORY : buffer_allocate(b, on_host);
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
    if (b && !buffer_zero(b, err)) {
        gpu_buffer_free(b);
        return NULL;
    }
    return b;
}

void gpu_buffer_free(gpu_buffer *b) {
    if (!b) return;
    b->gpu->vk.vkDestroyBuffer(b->gpu->device, b->handle, NULL);
    if (b->memory) memory_release(b->gpu, b->memory);
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
    g->staging = buffer_new(g, GPU_STAGING_BYTES, true, err);
    return g->staging != NULL;
}

void gpu_memory_close(gpu *g) {
    gpu_buffer_free(g->staging);
    g->staging = NULL;
    free(g->shared);
}

bool gpu_submit(gpu *g, const VkCommandBuffer *commands, int count, error *err) {
    /* One submission per command buffer: watchdogs time submissions. */
    for (int i = 0; i < count; i++) {
        VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands[i]};
        VkResult result = g->vk.vkQueueSubmit(g->queue, 1, &info, i + 1 == count ? g->fence : VK_NULL_HANDLE);
        if (result != VK_SUCCESS) {
            g->vk.vkDeviceWaitIdle(g->device);
            return gpu_fail(g, result, "starting work", err);
        }
    }
    VkResult result = g->vk.vkWaitForFences(g->device, 1, &g->fence, VK_TRUE, UINT64_MAX);
    if (result == VK_SUCCESS) result = g->vk.vkResetFences(g->device, 1, &g->fence);
    return result == VK_SUCCESS || gpu_fail(g, result, "waiting for the device", err);
}

static bool copy_piece(gpu *g, VkBuffer from, size_t from_offset, VkBuffer to, size_t to_offset, size_t bytes, error *err) {
    if (!transfer_begin(g, err)) return false;
    transfer_barrier(g);
    VkBufferCopy region = {from_offset, to_offset, bytes};
    g->vk.vkCmdCopyBuffer(g->transfer, from, to, 1, &region);
    transfer_barrier(g);
    return transfer_end(g, err);
}

static bool range_fits(gpu_range r, error *err) {
    if (r.offset <= r.buffer->bytes && r.size <= r.buffer->bytes - r.offset) return true;
    return error_set(err, "a transfer of %zu bytes at %zu is outside its buffer of %zu bytes", r.size, r.offset, r.buffer->bytes);
}

bool gpu_upload(gpu *g, gpu_range to, const void *data, error *err) {
    if (!range_fits(to, err)) return false;
    if (to.buffer->host) {
        memcpy((char *)to.buffer->host + to.offset, data, to.size);
        return true;
    }
    for (size_t done = 0; done < to.size;) {
        size_t part = to.size - done < GPU_STAGING_BYTES ? to.size - done : GPU_STAGING_BYTES;
        memcpy(g->staging->host, (const char *)data + done, part);
        if (!copy_piece(g, g->staging->handle, 0, to.buffer->handle, to.offset + done, part, err)) return false;
        done += part;
    }
    return true;
}

bool gpu_download(gpu *g, gpu_range from, void *data, error *err) {
    if (!range_fits(from, err)) return false;
    if (from.buffer->host) {
        memcpy(data, (char *)from.buffer->host + from.offset, from.size);
        return true;
    }
    for (size_t done = 0; done < from.size;) {
        size_t part = from.size - done < GPU_STAGING_BYTES ? from.size - done : GPU_STAGING_BYTES;
        if (!copy_piece(g, from.buffer->handle, from.offset + done, g->staging->handle, 0, part, err)) return false;
        memcpy((char *)data + done, g->staging->host, part);
        done += part;
    }
    return true;
}
