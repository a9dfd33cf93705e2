/* Recordings: dispatches are noted first, then turned into command buffers at once, when all pipelines and descriptors are known. */
#include "vulkan/recording.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

gpu_recording *gpu_recording_begin(gpu *g) {
    gpu_recording *rec = memory_new(1, sizeof *rec);
    rec->gpu = g;
    return rec;
}

const gpu *gpu_recording_device(const gpu_recording *rec) { return rec->gpu; }

static void record_fail(gpu_recording *rec, const gpu_dispatch *d, const char *why) {
    if (!rec->failure[0]) snprintf(rec->failure, sizeof rec->failure, "kernel %s: %s", d->shader, why);
}

/* What the driver would not forgive. */
static bool dispatch_is_valid(gpu_recording *rec, const gpu_dispatch *d) {
    if (d->range_count > GPU_BINDINGS || d->push_bytes > GPU_PUSH_BYTES || d->push_bytes % 4) {
        record_fail(rec, d, "too many bindings or push constants");
        return false;
    }
    for (int i = 0; i < d->range_count; i++) {
        const gpu_range *r = &d->ranges[i];
        char why[256];
        if (r->buffer && r->size && r->size <= r->buffer->bytes && r->offset <= r->buffer->bytes - r->size &&
            r->offset % rec->gpu->limits.offset_alignment == 0 && r->size <= rec->gpu->limits.range_bytes)
            continue;
        if (r->size > rec->gpu->limits.range_bytes)
            snprintf(why, sizeof why, "a tensor of %.1f MiB is over the device's limit of %.1f MiB; use a smaller batch or resolution",
                     (double)r->size / (1 << 20), (double)rec->gpu->limits.range_bytes / (1 << 20));
        else
            snprintf(why, sizeof why, "binding %d is no valid range (%zu bytes at %zu)", i, r->size, r->offset);
        record_fail(rec, d, why);
        return false;
    }
    for (int i = 0; i < 3; i++) {
        char why[256];
        if (d->groups[i] - 1u < rec->gpu->limits.groups[i]) continue;
        snprintf(why, sizeof why, "%u workgroups along %c, the device takes 1 to %u; use a smaller batch or resolution", d->groups[i],
                 "xyz"[i], rec -> gpu -> limits.groups[i]);
        record_fail(rec, d, why);
        return false;
    }
    return true;
}

void gpu_record(gpu_recording *rec, const gpu_dispatch *d, double flops) {
    if (rec->failure[0] || !dispatch_is_valid(rec, d)) return;
    gpu_pipeline *pipeline = gpu_pipeline_find(rec->gpu, d);
    if (!pipeline) {
        record_fail(rec, d, "there is no kernel of that name");
        return;
    }
    if (rec->count == rec->capacity) {
        rec->capacity = rec->capacity ? 2 * rec->capacity : 64;
        rec->launches = memory_grow(rec->launches, (size_t)rec->capacity, sizeof *rec->launches);
    }
    launch *l = &rec->launches[rec->count++];
    memset(l, 0, sizeof *l);
    l->pipeline = pipeline;
    if (d->push_bytes) memcpy(l->push, d->push, d->push_bytes);
    memcpy(l->ranges, d->ranges, (size_t)d->range_count * sizeof *d->ranges);
    l->range_count = d->range_count;
    memcpy(l->groups, d->groups, sizeof l->groups);
    l->written = d->written;
    l->seconds = launch_estimate(rec->gpu, d, flops);
}

static VkResult make_descriptors(gpu_recording *rec) {
    gpu *g = rec->gpu;
    VkDescriptorSet *sets = rec->sets = memory_new((size_t)rec->count, sizeof *sets);
    uint32_t n = (uint32_t)rec->count;
    VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, n * GPU_BINDINGS};
    VkDescriptorPoolCreateInfo pool = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO, .maxSets = n, .poolSizeCount = 1, .pPoolSizes = &size};
    VkResult result = g->vk.vkCreateDescriptorPool(g->device, &pool, NULL, &rec->descriptors);
    for (uint32_t i = 0; i < n && result == VK_SUCCESS; i++) {
        VkDescriptorSetAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                            .descriptorPool = rec->descriptors,
                                            .descriptorSetCount = 1,
                                            .pSetLayouts = &g->bindings};
        result = g->vk.vkAllocateDescriptorSets(g->device, &info, &sets[i]);
        if (result != VK_SUCCESS) break;
        const launch *l = &rec->launches[i];
        VkDescriptorBufferInfo buffers[GPU_BINDINGS];
        for (int b = 0; b < l->range_count; b++)
            buffers[b] = (VkDescriptorBufferInfo){l->ranges[b].buffer->handle, l->ranges[b].offset, l->ranges[b].size};
        VkWriteDescriptorSet write = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                      .dstSet = sets[i],
                                      .descriptorCount = (uint32_t)l->range_count,
                                      .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                      .pBufferInfo = buffers};
        g->vk.vkUpdateDescriptorSets(g->device, l->range_count ? 1 : 0, &write, 0, NULL);
    }
    return result;
}

static void put_barrier(const gpu *g, VkCommandBuffer c, VkPipelineStageFlags from, VkPipelineStageFlags to, VkAccessFlags to_access) {
    VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT, .dstAccessMask = to_access};
    g->vk.vkCmdPipelineBarrier(c, from, to, 0, 1, &barrier, 0, NULL, 0, NULL);
}

static const VkAccessFlags shader_access = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT;
static const VkPipelineStageFlags compute_stage = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;

/* ---- command buffers ---- */

static VkResult piece_begin(const gpu_recording *rec, int piece, VkCommandBuffer c) {
    const gpu *g = rec->gpu;
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkResult result = g->vk.vkBeginCommandBuffer(c, &begin);
    if (rec->times && piece == 0) {
        g->vk.vkCmdResetQueryPool(c, rec->times, 0, (uint32_t)rec->pieces + 1);
        g->vk.vkCmdWriteTimestamp(c, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, rec->times, 0);
    }
    put_barrier(g, c, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT, compute_stage, shader_access);
    return result;
}

static VkResult piece_end(const gpu_recording *rec, int piece, VkCommandBuffer c) {
    const gpu *g = rec->gpu;
    put_barrier(g, c, compute_stage, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT,
                VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT);
    if (rec->times) g->vk.vkCmdWriteTimestamp(c, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, rec->times, (uint32_t)piece + 1);
    return g->vk.vkEndCommandBuffer(c);
}

static void dispatch_part(const gpu_recording *rec, const launch_part *p, VkCommandBuffer c) {
    const gpu *g = rec->gpu;
    const launch *l = &rec->launches[p->launch];
    if (p->barrier) put_barrier(g, c, compute_stage, compute_stage, shader_access);
    g->vk.vkCmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE, l->pipeline->handle);
    g->vk.vkCmdBindDescriptorSets(c, VK_PIPELINE_BIND_POINT_COMPUTE, g->layout, 0, 1, &rec->sets[p->launch], 0, NULL);
    g->vk.vkCmdPushConstants(c, g->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, GPU_PUSH_BYTES, l->push);
    if (p->base[0] || p->base[1] || p->base[2])
        g->vk.vkCmdDispatchBase(c, p->base[0], p->base[1], p->base[2], p->groups[0], p->groups[1], p->groups[2]);
    else
        g->vk.vkCmdDispatch(c, p->groups[0], p->groups[1], p->groups[2]);
}

static VkResult make_commands(const gpu_recording *rec) {
    VkResult result = VK_SUCCESS;
    VkCommandBuffer c = VK_NULL_HANDLE;
    int piece = -1;
    for (int i = 0; i < rec->part_count && result == VK_SUCCESS; i++) {
        const launch_part *p = &rec->parts[i];
        if (p->starts_piece) {
            if (c) result = piece_end(rec, piece, c);
            c = rec->buffers[++piece];
            if (result == VK_SUCCESS) result = piece_begin(rec, piece, c);
        }
        dispatch_part(rec, p, c);
    }
    return result == VK_SUCCESS && c ? piece_end(rec, piece, c) : result;
}

static void release_commands(gpu_recording *rec) {
    gpu *g = rec->gpu;
    if (g->state != GPU_HANGS) {
        g->vk.vkDestroyCommandPool(g->device, rec->commands, NULL);
        g->vk.vkDestroyQueryPool(g->device, rec->times, NULL);
    }
    rec->commands = VK_NULL_HANDLE;
    rec->times = VK_NULL_HANDLE;
    free(rec->buffers);
    rec->buffers = NULL;
}

static VkResult allocate_commands(gpu_recording *rec) {
    gpu *g = rec->gpu;
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .queueFamilyIndex = g->queue_family};
    VkResult result = g->vk.vkCreateCommandPool(g->device, &pool, NULL, &rec->commands);
    if (result != VK_SUCCESS) return result;
    rec->buffers = memory_new((size_t)rec->pieces, sizeof *rec->buffers);
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = rec->commands,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = (uint32_t)rec->pieces};
    result = g->vk.vkAllocateCommandBuffers(g->device, &info, rec->buffers);
    if (result != VK_SUCCESS || g->tick_s <= 0) return result;
    VkQueryPoolCreateInfo times = {
        .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = (uint32_t)rec->pieces + 1};
    return g->vk.vkCreateQueryPool(g->device, &times, NULL, &rec->times);
}

/* Schedule and command buffers, or new ones by what was measured. */
static VkResult prepare_commands(gpu_recording *rec) {
    release_commands(rec);
    schedule_make(rec);
    VkResult result = allocate_commands(rec);
    return result == VK_SUCCESS ? make_commands(rec) : result;
}

bool gpu_recording_end(gpu_recording *rec, error *err) {
    if (rec->failure[0]) return error_set(err, "%s: %s", rec->gpu->info.name, rec->failure);
    if (rec->count == 0) return true;
    if (!gpu_pipelines_build(rec->gpu, err)) return false;
    VkResult result = make_descriptors(rec);
    if (result == VK_SUCCESS) result = prepare_commands(rec);
    return result == VK_SUCCESS || gpu_fail(rec->gpu, result, "recording a step", err);
}

/* ---- running ---- */

static void read_times(gpu_recording *rec) {
    gpu *g = rec->gpu;
    uint32_t n = (uint32_t)rec->pieces + 1;
    uint64_t *ticks = memory_new(n, sizeof *ticks);
    VkResult result =
        g->vk.vkGetQueryPoolResults(g->device, rec->times, 0, n, n * sizeof *ticks, ticks, sizeof *ticks, VK_QUERY_RESULT_64_BIT);
    for (int i = 0; i < rec->pieces; i++)
        rec->piece_measured[i] = result == VK_SUCCESS ? (double)((ticks[i + 1] - ticks[i]) & g->tick_mask) * g->tick_s : 0;
    free(ticks);
}

bool gpu_run(gpu_recording *rec, error *err) {
    if (rec->count == 0) return true;
    if (!gpu_submit(rec->gpu, rec->buffers, rec->piece_seconds, rec->pieces, err)) return false;
    if (!rec->times) return true;
    read_times(rec);
    if (!schedule_learn(rec)) return true;
    VkResult result = prepare_commands(rec);
    return result == VK_SUCCESS || gpu_fail(rec->gpu, result, "recording a step", err);
}

void gpu_recording_free(gpu_recording *rec) {
    if (!rec) return;
    release_commands(rec);
    if (rec->gpu->state != GPU_HANGS) rec->gpu->vk.vkDestroyDescriptorPool(rec->gpu->device, rec->descriptors, NULL);
    schedule_free(rec);
    free(rec->sets);
    free(rec->launches);
    free(rec);
}

gpu_counts gpu_recording_count(gpu_recording *rec) {
    if (!rec->parts) schedule_make(rec);
    gpu_counts counts = {.dispatches = rec->part_count, .barriers = rec->barriers, .submissions = rec->pieces};
    for (int i = 0; i < rec->pieces; i++)
        if (rec->piece_measured[i] > counts.longest_s) counts.longest_s = rec->piece_measured[i];
    return counts;
}
