/* Recordings: dispatches are noted first, then turned into command buffers at once, when all pipelines and descriptors are known. */
#include "vulkan/internal.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct launch {
    gpu_pipeline *pipeline;
    uint32_t push[GPU_PUSH_BYTES / 4];
    gpu_range ranges[GPU_BINDINGS];
    int range_count;
    uint32_t groups[3];
    bool barrier;      /* before it */
    bool starts_piece; /* a new submission begins here */
} launch;

/* A range touched since the last barrier. */
typedef struct access {
    gpu_range range;
    bool write;
} access;

struct gpu_recording {
    gpu *gpu;
    launch *launches;
    int count, capacity, barriers, pieces;
    access *open; /* since the last barrier */
    int open_count, open_capacity;
    double piece_flops;
    char failure[512];
    VkDescriptorPool descriptors;
    VkCommandPool commands;
    VkCommandBuffer *buffers; /* one per piece */
};

gpu_recording *gpu_recording_begin(gpu *g) {
    gpu_recording *rec = memory_new(1, sizeof *rec);
    rec->gpu = g;
    return rec;
}

const gpu *gpu_recording_device(const gpu_recording *rec) { return rec->gpu; }

static bool overlap(const gpu_range *a, const gpu_range *b) {
    return a->buffer == b->buffer && a->offset < b->offset + b->size && b->offset < a->offset + a->size;
}

/* Whether the dispatch must wait: it reads what was written, or writes what was read or written, since the last barrier. */
static bool must_wait(const gpu_recording *rec, const gpu_dispatch *d) {
    for (int i = 0; i < rec->open_count; i++)
        for (int j = 0; j < d->range_count; j++)
            if ((rec->open[i].write || (d->written >> j & 1)) && overlap(&rec->open[i].range, &d->ranges[j])) return true;
    return false;
}

static void note_accesses(gpu_recording *rec, const gpu_dispatch *d) {
    for (int j = 0; j < d->range_count; j++) {
        if (rec->open_count == rec->open_capacity) {
            rec->open_capacity = rec->open_capacity ? 2 * rec->open_capacity : 64;
            rec->open = memory_grow(rec->open, (size_t)rec->open_capacity, sizeof *rec->open);
        }
        rec->open[rec->open_count++] = (access){d->ranges[j], d->written >> j & 1};
    }
}

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
        if (d->groups[i] - 1u < 65535) continue;
        record_fail(rec, d, "too many workgroups, or none; use a smaller batch or resolution");
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

    double limit = rec->gpu->flops_per_piece;
    l->starts_piece = rec->count == 1 || (limit > 0 && rec->piece_flops > 0 && rec->piece_flops + flops > limit);
    if (l->starts_piece) {
        rec->pieces++;
        rec->piece_flops = 0;
        rec->open_count = 0; /* every piece begins with a barrier */
    } else if (must_wait(rec, d)) {
        l->barrier = true;
        rec->barriers++;
        rec->open_count = 0;
    }
    rec->piece_flops += flops;
    note_accesses(rec, d);
}

static VkResult make_descriptors(gpu_recording *rec, VkDescriptorSet *sets) {
    gpu *g = rec->gpu;
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

static VkResult piece_begin(const gpu *g, VkCommandBuffer c) {
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkResult result = g->vk.vkBeginCommandBuffer(c, &begin);
    put_barrier(g, c, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT, compute_stage, shader_access);
    return result;
}

static VkResult piece_end(const gpu *g, VkCommandBuffer c) {
    put_barrier(g, c, compute_stage, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT,
                VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT);
    return g->vk.vkEndCommandBuffer(c);
}

static VkResult make_commands(gpu_recording *rec, const VkDescriptorSet *sets) {
    gpu *g = rec->gpu;
    VkResult result = VK_SUCCESS;
    VkCommandBuffer c = VK_NULL_HANDLE;
    int piece = 0;
    for (int i = 0; i < rec->count && result == VK_SUCCESS; i++) {
        const launch *l = &rec->launches[i];
        if (l->starts_piece) {
            if (c) result = piece_end(g, c);
            c = rec->buffers[piece++];
            if (result == VK_SUCCESS) result = piece_begin(g, c);
        } else if (l->barrier) {
            put_barrier(g, c, compute_stage, compute_stage, shader_access);
        }
        g->vk.vkCmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE, l->pipeline->handle);
        g->vk.vkCmdBindDescriptorSets(c, VK_PIPELINE_BIND_POINT_COMPUTE, g->layout, 0, 1, &sets[i], 0, NULL);
        g->vk.vkCmdPushConstants(c, g->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, GPU_PUSH_BYTES, l->push);
        g->vk.vkCmdDispatch(c, l->groups[0], l->groups[1], l->groups[2]);
    }
    return result == VK_SUCCESS && c ? piece_end(g, c) : result;
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
    return g->vk.vkAllocateCommandBuffers(g->device, &info, rec->buffers);
}

bool gpu_recording_end(gpu_recording *rec, error *err) {
    if (rec->failure[0]) return error_set(err, "%s: %s", rec->gpu->info.name, rec->failure);
    if (rec->count == 0) return true;
    if (!gpu_pipelines_build(rec->gpu, err)) return false;
    VkDescriptorSet *sets = memory_new((size_t)rec->count, sizeof *sets);
    VkResult result = make_descriptors(rec, sets);
    if (result == VK_SUCCESS) result = allocate_commands(rec);
    if (result == VK_SUCCESS) result = make_commands(rec, sets);
    free(sets);
    return result == VK_SUCCESS || gpu_fail(rec->gpu, result, "recording a step", err);
}

bool gpu_run(gpu_recording *rec, error *err) { return rec->count == 0 || gpu_submit(rec->gpu, rec->buffers, rec->pieces, err); }

void gpu_recording_free(gpu_recording *rec) {
    if (!rec) return;
    rec->gpu->vk.vkDestroyCommandPool(rec->gpu->device, rec->commands, NULL);
    rec->gpu->vk.vkDestroyDescriptorPool(rec->gpu->device, rec->descriptors, NULL);
    free(rec->buffers);
    free(rec->launches);
    free(rec->open);
    free(rec);
}

void gpu_recording_count(const gpu_recording *rec, int *dispatches, int *barriers) {
    *dispatches = rec->count;
    *barriers = rec->barriers;
}
