/* The order of an epoch. */
#include "base/memory.h"
#include "base/random.h"
#include "datasets/dataset.h"

#include <stdlib.h>
#include <string.h>

/* Independent streams of random numbers within an epoch; bucket i's order is stream STREAM_BUCKETS + i. */
enum { STREAM_BATCHES, STREAM_FLIPS, STREAM_BUCKETS };

size_t dataset_epoch_batches(const dataset *ds, size_t batch_size) {
    size_t batches = 0;
    for (size_t b = 0; b < ds->bucket_count; b++) batches += (ds->bucket_items[b] + batch_size - 1) / batch_size;
    return batches;
}

/* All items of a bucket in the order of images and repeats. */
static void list_items(const dataset *ds, size_t bucket, dataset_item *out) {
    for (size_t i = 0; i < ds->count; i++) {
        if (ds->images[i].bucket != bucket) continue;
        for (int r = 0; r < ds->images[i].repeats; r++) *out++ = (dataset_item){(uint32_t)i, (uint32_t)r, false};
    }
}

dataset_plan dataset_epoch_plan(const dataset *ds, uint64_t seed, uint64_t epoch, size_t batch_size) {
    uint64_t key = random_bits(seed, epoch, 0);
    dataset_plan plan = {.batch_count = dataset_epoch_batches(ds, batch_size), .item_count = ds->report.items};
    plan.items = memory_new(plan.item_count, sizeof *plan.items);
    plan.batches = memory_new(plan.batch_count, sizeof *plan.batches);
    dataset_batch *batches = memory_new(plan.batch_count, sizeof *batches);
    dataset_item *listed = memory_new(plan.item_count, sizeof *listed);
    uint32_t *order = memory_new(plan.item_count > plan.batch_count ? plan.item_count : plan.batch_count, sizeof *order);
    size_t first = 0, made = 0;
    for (size_t b = 0; b < ds->bucket_count; b++) {
        size_t count = ds->bucket_items[b];
        list_items(ds, b, listed);
        random_order(key, STREAM_BUCKETS + b, order, count);
        for (size_t i = 0; i < count; i++) {
            dataset_item item = listed[order[i]];
            uint64_t draw = (uint64_t)item.image << 32 | item.repeat;
            item.flip = ds->flip && random_bits(key, STREAM_FLIPS, draw) >> 63;
            plan.items[first + i] = item;
        }
        for (size_t i = 0; i < count; i += batch_size)
            batches[made++] = (dataset_batch){b, first + i, count - i < batch_size ? count - i : batch_size};
        first += count;
    }
    random_order(key, STREAM_BATCHES, order, plan.batch_count);
    for (size_t i = 0; i < plan.batch_count; i++) plan.batches[i] = batches[order[i]];
    free(batches);
    free(listed);
    free(order);
    return plan;
}

void dataset_plan_free(dataset_plan *plan) {
    free(plan->batches);
    free(plan->items);
    *plan = (dataset_plan){0};
}
