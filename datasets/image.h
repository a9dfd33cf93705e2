/* Pictures: PNG, JPEG, WebP and BMP, recognised by content. Upright (EXIF orientation), transparency composed on a colour, 8-bit RGB. */
#ifndef VULORA_DATASETS_IMAGE_H
#define VULORA_DATASETS_IMAGE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define IMAGE_MAX_SIDE 16384
#define IMAGE_MAX_PIXELS 100000000

typedef enum image_format { IMAGE_PNG, IMAGE_JPEG, IMAGE_WEBP, IMAGE_BMP, IMAGE_FORMAT_COUNT } image_format;

typedef struct image_info {
    image_format format;
    int width, height; /* upright */
    int orientation;   /* EXIF: 1..8, as the file is stored */
} image_info;

/* pixels: [height, width, 3], sRGB, rows from the top; freed with image_free. */
typedef struct image_rgb {
    int width, height;
    uint8_t *pixels;
} image_rgb;

/* A rectangle of pixels. */
typedef struct image_area {
    int x, y, width, height;
} image_area;

/* What a file holds, from its structure alone: refuses what is not a picture of these formats, is damaged (PNG checksums), cut short,
   animated, or larger than the limits. `name` goes into the message. */
bool image_probe(const uint8_t *data, size_t size, const char *name, image_info *info, error *err);

/* Decodes a whole file in memory; transparent parts show `background`. */
bool image_decode(const uint8_t *data, size_t size, const char *name, const uint8_t background[3], image_rgb *out, error *err);

bool image_read(const char *path, const uint8_t background[3], image_rgb *out, error *err);

void image_free(image_rgb *picture);

/* Scales `area` of a picture to out: [out_height, out_width, 3], -1..1. Shrinking both ways averages areas, anything else is Lanczos with
   three lobes, widened where it shrinks; pixels outside the area are not looked at. `flip` mirrors left and right. False: out of memory. */
bool image_scale(const image_rgb *picture, image_area area, bool flip, float *out, int out_width, int out_height, error *err);

#endif
