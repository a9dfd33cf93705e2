#include "datasets/bucket.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

#define LARGEST_SIDE 4096

static int round_down(int value, int step) { return value / step * step; }

static bool resolve(const bucket_options *in, bucket_options *out, error *err) {
    *out = *in;
    if (in->width < 64 || in->height < 64 || in->width % 8 || in->height % 8 || in->width > LARGEST_SIDE || in->height > LARGEST_SIDE)
        return error_set(err, "--resolution %dx%d: sides must be multiples of 8 from 64 to %d", in->width, in->height, LARGEST_SIDE);
    if (in->single) return true;
    int side = (int)sqrt((double)in->width * in->height);
    int longer = in->width > in->height ? in->width : in->height, shorter = in->width + in->height - longer;
    if (!in->step) out->step = side < 256 ? 16 : 64;
    if (!in->smallest) out->smallest = side < 512 ? side / 2 : 256;
    if (!in->largest) out->largest = side < 512 ? side * 2 : 1024;
    /* A default never contradicts the resolution asked for. */
    if (!in->smallest && out->smallest > shorter) out->smallest = shorter;
    if (!in->largest && out->largest < longer) out->largest = longer;
    if (out->step < 8 || out->step % 8) return error_set(err, "--bucket-reso-steps %d: must be a multiple of 8", out->step);
    if (out->smallest < 8 || out->smallest > shorter)
        return error_set(err, "--min-bucket-reso %d: must be from 8 to the resolution's shorter side, %d", out->smallest, shorter);
    if (out->largest < longer || out->largest > LARGEST_SIDE)
        return error_set(err, "--max-bucket-reso %d: must be from the resolution's longer side, %d, to %d", out->largest, longer,
                         LARGEST_SIDE);
    out->smallest = round_down(out->smallest, out->step);
    if (out->smallest < out->step) out->smallest = out->step;
    out->largest = round_down(out->largest + out->step - 1, out->step);
    return true;
}

static int compare_sizes(const void *a, const void *b) {
    const bucket_size *left = a, *right = b;
    return left->width != right->width ? left->width - right->width : left->height - right->height;
}

bucket_size *bucket_list(const bucket_options *options, size_t *count, error *err) {
    bucket_options o;
    if (!resolve(options, &o, err)) return NULL;
    size_t room = o.single ? 1 : 1 + 2 * (size_t)(o.largest / o.step + 1), used = 0;
    bucket_size *list = memory_new(room, sizeof *list);
    if (o.single) {
        list[used++] = (bucket_size){o.width, o.height};
    } else {
        int area = o.width * o.height, square = round_down((int)sqrt((double)area), o.step);
        if (square >= o.step) list[used++] = (bucket_size){square, square};
        for (int width = o.smallest; width <= o.largest; width += o.step) {
            int height = round_down(area / width, o.step);
            if (height > o.largest) height = o.largest;
            if (height < o.smallest) continue;
            list[used++] = (bucket_size){width, height};
            list[used++] = (bucket_size){height, width};
        }
        qsort(list, used, sizeof *list, compare_sizes);
        size_t kept = 0;
        for (size_t i = 0; i < used; i++)
            if (i == 0 || compare_sizes(&list[i], &list[kept - 1]) != 0) list[kept++] = list[i];
        used = kept;
    }
    if (used == 0) {
        free(list);
        error_set(err, "--resolution %dx%d gives no bucket in steps of %d; use a smaller --bucket-reso-steps", o.width, o.height, o.step);
        return NULL;
    }
    *count = used;
    return list;
}

size_t bucket_choose(const bucket_size *buckets, size_t count, int width, int height) {
    size_t best = 0;
    double least = HUGE_VAL, aspect = (double)width / height;
    for (size_t i = 0; i < count; i++) {
        if (buckets[i].width == width && buckets[i].height == height) return i;
        double difference = fabs((double)buckets[i].width / buckets[i].height - aspect);
        if (difference < least) {
            least = difference;
            best = i;
        }
    }
    return best;
}

image_area bucket_crop(bucket_size bucket, int width, int height) {
    double scale = fmax((double)bucket.width / width, (double)bucket.height / height);
    image_area area = {0, 0, (int)lround(bucket.width / scale), (int)lround(bucket.height / scale)};
    if (area.width < 1) area.width = 1;
    if (area.height < 1) area.height = 1;
    if (area.width > width) area.width = width;
    if (area.height > height) area.height = height;
    area.x = (width - area.width) / 2;
    area.y = (height - area.height) / 2;
    return area;
}
