/* File structures of the image formats, as far as probing and orientation need them. */
#ifndef VULORA_DATASETS_IMAGE_FORMAT_H
#define VULORA_DATASETS_IMAGE_FORMAT_H

#include "datasets/image.h"

/* Width and height as stored, and the EXIF block if there is one (inside `data`). */
typedef struct image_structure {
    image_format format;
    int64_t width, height;
    const uint8_t *exif;
    size_t exif_size;
} image_structure;

/* Walks the file to its end. */
bool image_structure_read(const uint8_t *data, size_t size, const char *name, image_structure *out, error *err);

#endif
