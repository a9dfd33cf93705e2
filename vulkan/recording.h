/* What recording.c and schedule.c share: the dispatches of a recording, and the submissions they are cut into. */
#ifndef VULORA_VULKAN_RECORDING_H
#define VULORA_VULKAN_RECORDING_H

#include "vulkan/internal.h"

/* One gpu_record. */
typedef struct launch {
    gpu_pipeline *pipeline;
    uint32_t push[GPU_PUSH_BYTES / 4];
    gpu_range ranges[GPU_BINDINGS];
    int range_count;
    uint32_t written;
    uint32_t groups[3];
    double seconds; /* estimated, later measured */
} launch;

/* What is dispatched at once: a launch, or some of its workgroups when it takes too long for one submission. */
typedef struct launch_part {
    int launch;
    uint32_t base[3], groups[3];
    double seconds;
    bool barrier;      /* before it */
    bool starts_piece; /* a new submission begins here */
} launch_part;

/* A range touched since the last barrier. */
typedef struct access {
    gpu_range range;
    bool write;
} access;

struct gpu_recording {
    gpu *gpu;
    char failure[512];
    launch *launches;
    int count, capacity;

    /* schedule.c */
    launch_part *parts; /* NULL: not scheduled yet */
    int part_count, part_capacity, barriers, pieces;
    double *piece_seconds;  /* estimated; [pieces] */
    double *piece_measured; /* of the last run; [pieces], zeros where nothing was measured */
    int adjustments;        /* how often measured times led to another schedule */

    /* recording.c */
    VkDescriptorPool descriptors;
    VkDescriptorSet *sets; /* one per launch */
    VkCommandPool commands;
    VkCommandBuffer *buffers; /* one per piece */
    VkQueryPool times;        /* at the beginning and after each piece; VK_NULL_HANDLE where the device has no clock */
};

/* Seconds that the dispatch takes on the slowest device of this one's class. */
double launch_estimate(const gpu *g, const gpu_dispatch *d, double flops);
/* Cuts the launches into parts and pieces, and places barriers. */
void schedule_make(gpu_recording *rec);
void schedule_free(gpu_recording *rec);
/* Takes in piece_measured. true: the schedule should be made anew, because a piece was too long or half of them would do. */
bool schedule_learn(gpu_recording *rec);

#endif
