/* Work for the device: submissions with a bounded wait, and data on its way between host and buffers. Where buffers are not the host's own
   memory, uploads gather in the staging buffer and travel with the next submission: they cost no wait of their own. */
#include "vulkan/internal.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

/* ---- submissions ---- */

/* How long a piece of work may take before the device is given up. Other programs may keep it busy; a driver that resets a hung device
   does so within seconds. */
static uint64_t patience_ns(double expected_s) { return (uint64_t)(1e9 * (60 + 100 * expected_s)); }

static VkResult need_fences(gpu *g, int count) {
    VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    if (count > g->fence_count) g->fences = memory_grow(g->fences, (size_t)count, sizeof *g->fences);
    VkResult result = VK_SUCCESS;
    while (g->fence_count < count && (result = g->vk.vkCreateFence(g->device, &info, NULL, &g->fences[g->fence_count])) == VK_SUCCESS)
        g->fence_count++;
    return result;
}

static VkResult submit_one(gpu *g, VkCommandBuffer commands, int number) {
    VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
    return g->vk.vkQueueSubmit(g->queue, 1, &info, g->fences[number]);
}

/* Submissions 0 to count - 1, in this order: each has its own time from when the one before it was done. */
static VkResult wait_for(gpu *g, const double *seconds, int count) {
    for (int i = 0; i < count; i++) {
        VkResult result = g->vk.vkWaitForFences(g->device, 1, &g->fences[i], VK_TRUE, patience_ns(seconds[i]));
        if (result != VK_SUCCESS) return result;
    }
    return count ? g->vk.vkResetFences(g->device, (uint32_t)count, g->fences) : VK_SUCCESS;
}

/* A lost device answers at once, and has nothing under way then. */
static bool submit_fail(gpu *g, VkResult result, const char *what, error *err) {
    if (result == VK_ERROR_DEVICE_LOST) {
        g->state = GPU_LOST;
        g->vk.vkDeviceWaitIdle(g->device);
    }
    if (result == VK_TIMEOUT) g->state = GPU_HANGS;
    return gpu_fail(g, result, what, err);
}

/* Memory of a lost device can often still be read, but may hold half of a step. */
static bool still_works(const gpu *g, error *err) {
    return gpu_usable(g) || gpu_fail(g, g->state == GPU_LOST ? VK_ERROR_DEVICE_LOST : VK_TIMEOUT, "starting work", err);
}

/* The transfers gathered, then the commands. */
static VkResult submit_all(gpu *g, const VkCommandBuffer *commands, int count, bool transfers, int *started) {
    VkResult result = need_fences(g, count + transfers);
    *started = 0;
    if (result == VK_SUCCESS && transfers && (result = submit_one(g, g->transfer, 0)) == VK_SUCCESS) ++*started;
    for (int i = 0; i < count && result == VK_SUCCESS; i++)
        if ((result = submit_one(g, commands[i], *started)) == VK_SUCCESS) ++*started;
    return result;
}

static void transfer_barrier(gpu *g);

bool gpu_submit(gpu *g, const VkCommandBuffer *commands, const double *seconds, int count, error *err) {
    if (!still_works(g, err)) return false;
    const bool transfers = g->transferring;
    double *expected = memory_new((size_t)count + 1, sizeof *expected); /* the transfers' first: next to nothing */
    if (count) memcpy(expected + transfers, seconds, (size_t)count * sizeof *expected);
    VkResult result = VK_SUCCESS;
    if (transfers) {
        transfer_barrier(g);
        result = g->vk.vkEndCommandBuffer(g->transfer);
    }
    int started = 0;
    if (result == VK_SUCCESS) result = submit_all(g, commands, count, transfers, &started);
    /* What was started is waited for in any case: its command buffers may be freed next. */
    VkResult waited = wait_for(g, expected, started);
    free(expected);
    g->transferring = false;
    g->staged = 0;
    if (waited != VK_SUCCESS && result != VK_ERROR_DEVICE_LOST) return submit_fail(g, waited, "waiting for the device", err);
    return result == VK_SUCCESS || submit_fail(g, result, "starting work", err);
}

bool gpu_flush(gpu *g, error *err) { return !g->transferring || gpu_submit(g, NULL, NULL, 0, err); }

/* ---- transfers ---- */

/* Between what ran before in this queue, a copy, and what the host or later work reads. */
static void transfer_barrier(gpu *g) {
    VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                               .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    VkPipelineStageFlags all = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT;
    g->vk.vkCmdPipelineBarrier(g->transfer, all, all, 0, 1, &barrier, 0, NULL, 0, NULL);
}

/* Makes g->transfer ready for one more command, with what came before it done. */
static bool transfer_next(gpu *g, error *err) {
    if (!still_works(g, err)) return false;
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    VkResult result = g->transferring ? VK_SUCCESS : g->vk.vkBeginCommandBuffer(g->transfer, &begin);
    if (result != VK_SUCCESS) return gpu_fail(g, result, "a transfer", err);
    g->transferring = true;
    transfer_barrier(g);
    return true;
}

bool gpu_zero(gpu_buffer *b, error *err) {
    gpu *g = b->gpu;
    if (b->host) {
        memset(b->host, 0, b->bytes);
        return true;
    }
    if (!transfer_next(g, err)) return false;
    g->vk.vkCmdFillBuffer(g->transfer, b->handle, 0, VK_WHOLE_SIZE, 0);
    return true;
}

static bool range_fits(gpu_range r, error *err) {
    if (r.offset <= r.buffer->bytes && r.size <= r.buffer->bytes - r.offset) return true;
    return error_set(err, "a transfer of %zu bytes at %zu is outside its buffer of %zu bytes", r.size, r.offset, r.buffer->bytes);
}

/* As much of `wanted` bytes as fits behind what is staged, for which there is room after a flush at the latest. */
static size_t staging_take(gpu *g, size_t wanted) {
    size_t room = g->staging->bytes - g->staged;
    return wanted < room ? wanted : room;
}

static bool upload_part(gpu *g, gpu_range to, const char *data, size_t *done, error *err) {
    if (g->staged == g->staging->bytes && !gpu_flush(g, err)) return false;
    if (!transfer_next(g, err)) return false;
    size_t part = staging_take(g, to.size - *done);
    memcpy((char *)g->staging->host + g->staged, data + *done, part);
    VkBufferCopy region = {g->staged, to.offset + *done, part};
    g->vk.vkCmdCopyBuffer(g->transfer, g->staging->handle, to.buffer->handle, 1, &region);
    g->staged += (part + 15) / 16 * 16;
    *done += part;
    return true;
}

bool gpu_upload(gpu *g, gpu_range to, const void *data, error *err) {
    if (!range_fits(to, err) || !still_works(g, err)) return false;
    if (to.buffer->host) {
        memcpy((char *)to.buffer->host + to.offset, data, to.size);
        return true;
    }
    for (size_t done = 0; done < to.size;)
        if (!upload_part(g, to, data, &done, err)) return false;
    return true;
}

bool gpu_download(gpu *g, gpu_range from, void *data, error *err) {
    if (!range_fits(from, err) || !still_works(g, err)) return false;
    if (from.buffer->host) {
        memcpy(data, (char *)from.buffer->host + from.offset, from.size);
        return true;
    }
    for (size_t done = 0; done < from.size;) {
        if (g->staged == g->staging->bytes && !gpu_flush(g, err)) return false;
        if (!transfer_next(g, err)) return false;
        size_t part = staging_take(g, from.size - done), at = g->staged;
        VkBufferCopy region = {from.offset + done, at, part};
        g->vk.vkCmdCopyBuffer(g->transfer, from.buffer->handle, g->staging->handle, 1, &region);
        if (!gpu_flush(g, err)) return false;
        memcpy((char *)data + done, (char *)g->staging->host + at, part);
        done += part;
    }
    return true;
}
