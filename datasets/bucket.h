/* Aspect buckets: the sizes that pictures are scaled and cropped to, as sd-scripts makes and chooses them
   (https://github.com/kohya-ss/sd-scripts, library/model_util.py make_bucket_resolutions and BucketManager.select_bucket). */
#ifndef VULORA_DATASETS_BUCKET_H
#define VULORA_DATASETS_BUCKET_H

#include "datasets/image.h"

#include <stddef.h>

typedef struct bucket_size {
    int width, height;
} bucket_size;

typedef struct bucket_options {
    int width, height;     /* the training resolution: multiples of 8 from 64 */
    bool single;           /* one bucket of that size: no aspect buckets */
    int step;              /* sides are multiples of it; 0: 64, or 16 below a resolution of 256 */
    int smallest, largest; /* sides' limits; 0: 256 and 1024, below a resolution of 512 half and twice the resolution */
} bucket_options;

/* The list, sorted by width, then height; freed by the caller. NULL on error. */
bucket_size *bucket_list(const bucket_options *options, size_t *count, error *err);

/* Index of the bucket for a picture of that size: its own size if there is one, else the nearest aspect ratio. */
size_t bucket_choose(const bucket_size *buckets, size_t count, int width, int height);

/* The centred part of a picture that is scaled to the bucket: as much as fits, in whole pixels. */
image_area bucket_crop(bucket_size bucket, int width, int height);

#endif
