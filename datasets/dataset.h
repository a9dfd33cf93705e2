/* A folder of pictures with captions, sorted into aspect buckets, and the order in which training draws them.

   Layouts understood: pictures in the folder itself; subfolders named N_name, each of whose pictures counts N times; the folder being
   itself named N_name; and the parent of a folder that holds N_name folders (kohya's project folder with img/ in it). */
#ifndef VULORA_DATASETS_DATASET_H
#define VULORA_DATASETS_DATASET_H

#include "base/error.h"
#include "datasets/bucket.h"

#include <stddef.h>
#include <stdint.h>

typedef struct dataset_options {
    const char *folder;
    bucket_options buckets;
    bool flip;                     /* mirror half of what is drawn */
    const char *caption_extension; /* only captions in files with this extension ("txt" or ".txt"); NULL: .txt, then .caption */
    const char *trigger;           /* the caption of pictures that have none; NULL: there is none */
    uint8_t background[3];         /* what transparent parts show */
} dataset_options;

typedef enum caption_source {
    CAPTION_TXT,
    CAPTION_CAPTION,
    CAPTION_OTHER_FILE,
    CAPTION_FOLDER,
    CAPTION_TRIGGER,
    CAPTION_SOURCE_COUNT
} caption_source;

typedef struct dataset_image {
    char *path;
    char *caption; /* UTF-8, without white space at its ends */
    caption_source source;
    int repeats;
    int width, height; /* upright */
    size_t bucket;     /* index into the dataset's buckets */
    image_area crop;   /* the part of the upright picture that is scaled to the bucket */
    bool upscaled;     /* smaller than its bucket */
    char hash[65];     /* SHA-256 of the file */
} dataset_image;

/* What a dry run tells. */
typedef struct dataset_report {
    size_t images, items; /* items: images times repeats, an epoch */
    size_t captions[CAPTION_SOURCE_COUNT];
    size_t junk;                          /* hidden files, __MACOSX, thumbnails, caches and other files that are no pictures */
    size_t foreign;                       /* pictures in formats that are not read (GIF, HEIC, ...) */
    size_t lone_captions;                 /* caption files without a picture */
    size_t empty_captions, long_captions; /* files with nothing in them; with more than the first line that is used */
    size_t duplicates;                    /* pictures that have the same bytes as an earlier one */
    size_t upscaled;
    size_t smallest; /* index of the image with the fewest pixels */
    char **notes;    /* sentences worth showing: folders passed over, duplicates, ... */
    size_t note_count;
} dataset_report;

typedef struct dataset {
    dataset_image *images; /* sorted by path */
    size_t count;
    bucket_size *buckets;
    size_t *bucket_images, *bucket_items; /* per bucket */
    size_t bucket_count;
    bool flip;
    uint8_t background[3];
    dataset_report report;
} dataset;

/* Reads the folder: every file is read once (structure, size, hash), no pixels are decoded. Errors name the first bad picture or
   caption and say how many more there are. */
bool dataset_open(const dataset_options *options, dataset *ds, error *err);
void dataset_close(dataset *ds);

/* out: [bucket height, bucket width, 3], -1..1. A file that has changed since dataset_open is an error. */
bool dataset_load(const dataset *ds, size_t image, bool flip, float *out, error *err);

/* One picture of a batch. */
typedef struct dataset_item {
    uint32_t image;
    uint32_t repeat; /* 0..repeats-1 */
    bool flip;
} dataset_item;

/* items[first .. first + count), all of one bucket. */
typedef struct dataset_batch {
    size_t bucket, first, count;
} dataset_batch;

typedef struct dataset_plan {
    dataset_batch *batches;
    size_t batch_count;
    dataset_item *items;
    size_t item_count;
} dataset_plan;

/* Batches in an epoch, the same in every one: a bucket's last batch may be short. */
size_t dataset_epoch_batches(const dataset *ds, size_t batch_size);

/* The epoch's batches in order: a pure function of the arguments. Every item is drawn once; order and flips differ from epoch to epoch. */
dataset_plan dataset_epoch_plan(const dataset *ds, uint64_t seed, uint64_t epoch, size_t batch_size);
void dataset_plan_free(dataset_plan *plan);

#endif
